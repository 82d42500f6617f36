"""The translation of a configuration into the arguments of TRL, of vLLM and of generation."""

import copy
import difflib
from typing import Any
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from golden_arguments import (
    CHAT,
    GOLDEN,
    NAMES,
    PRESETS,
    evaluation,
    golden_path,
    golden_text,
    grpo,
    index_of,
    machine,
    rollouts,
    sft,
    tiny_model,
)

from ngrpo.config import BenchmarkEvaluationConfig, NGRPOTrainingConfig, SFTWarmStartConfig, load_config, select
from ngrpo.config.sections import RolloutConfig, WarmStartConfig
from ngrpo.config.training import TrainingConfig
from ngrpo.rollout.loading import load_tokenizer
from ngrpo.training import policy_optimization

# By setting: another value than that of `tiny` with small micro batches, and all the arguments that it changes. A setting that no
# preset changes is in no golden file: only this proves that it is passed on.
SMALL = ("training.micro_batch_size=16", "warm_start.micro_batch_size=16")
GRPO: dict[str, tuple[object, dict[str, object]]] = {
    "seed": (3, {"seed": 3}),
    "model.dtype": ("bfloat16", {"bf16": True}),
    "rollout.group_size": (
        4,
        {
            "num_generations": 4,
            "generation_batch_size": 128,
            "steps_per_generation": 8,
            "gradient_accumulation_steps": 8,
        },
    ),
    "rollout.temperature": (0.9, {"temperature": 0.9}),
    "rollout.max_tokens": (20, {"max_completion_length": 20}),
    "training.rewards": ('{"letter": {"weight": 2.0}, "format": {}}', {"reward_weights": [2.0, 1.0]}),
    "training.steps": (40, {"max_steps": 40}),
    "training.prompts_per_batch": (
        64,
        {"generation_batch_size": 512, "steps_per_generation": 32, "gradient_accumulation_steps": 32},
    ),
    "training.updates_per_batch": (2, {"gradient_accumulation_steps": 8}),
    "training.micro_batch_size": (
        32,
        {"per_device_train_batch_size": 32, "steps_per_generation": 8, "gradient_accumulation_steps": 8},
    ),
    "training.learning_rate": (3e-4, {"learning_rate": 3e-4}),
    "training.lr_scheduler": ("cosine", {"lr_scheduler_type": "cosine"}),
    "training.warmup_ratio": (0.1, {"warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"}),
    "training.num_iterations": (2, {"num_iterations": 2}),
    "training.epsilon_high": (0.28, {"epsilon_high": 0.28}),
    "training.delta": (3.0, {"delta": 3.0}),
    "training.scale_rewards": ("none", {"scale_rewards": "none"}),
    "training.mask_truncated_completions": ("true", {"mask_truncated_completions": True}),
    "training.top_entropy_quantile": (0.2, {"top_entropy_quantile": 0.2}),
    "training.entropy_coefficient": (0.01, {"entropy_coef": 0.01}),
    "training.use_bias_correction_kl": ("false", {"use_bias_correction_kl": False}),
    "training.adam_beta2": (0.9, {"adam_beta2": 0.9}),
    "training.weight_decay": (0.1, {"weight_decay": 0.1}),
    "training.max_grad_norm": (0.5, {"max_grad_norm": 0.5}),
    "training.kl_coefficient": (0.2, {"beta": 0.2}),
    "training.clip_epsilon": (0.3, {"epsilon": 0.3}),
    "training.loss_type": ("dr_grpo", {"loss_type": "dr_grpo"}),
    "training.importance_sampling_level": ("sequence", {"importance_sampling_level": "sequence"}),
    "training.mismatch_correction": ("token_mask", {"vllm_importance_sampling_mode": "token_mask"}),
    "training.gradient_checkpointing": ("true", {"gradient_checkpointing": True}),
    "training.save_steps": (6, {"save_steps": 6, "eval_steps": 6}),
    "training.selection": (
        "null",
        {
            "do_eval": False,
            "eval_strategy": "no",
            "eval_steps": None,
            "num_generations_eval": None,
            "load_best_model_at_end": False,
            "metric_for_best_model": None,
            "greater_is_better": None,
        },
    ),
}
SFT: dict[str, tuple[object, dict[str, object]]] = {
    "seed": (3, {"seed": 3}),
    "model.dtype": ("bfloat16", {"bf16": True}),
    "warm_start.steps": (1200, {"max_steps": 1200, "warmup_steps": 36, "logging_steps": 10}),
    "warm_start.batch_size": (128, {"gradient_accumulation_steps": 8}),
    "warm_start.micro_batch_size": (32, {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 2}),
    "warm_start.learning_rate": (1e-3, {"learning_rate": 1e-3}),
    "warm_start.warmup_ratio": (0.1, {"warmup_steps": 30}),
    "warm_start.weight_decay": (0.1, {"weight_decay": 0.1}),
    "warm_start.max_tokens": (48, {"max_length": 48}),
    "warm_start.save_steps": (45, {"save_steps": 45}),
}
ELSEWHERE = {
    "rollout.engine",
    "rollout.placement",
    "rollout.gpus",
    "rollout.vllm",
    "rollout.batch_size",
    "rollout.top_p",  # must be 1
    "training.cast_lm_head_to_fp32",  # needs another `model.dtype`: see below
    "training.mask_mixed_positions",
    "training.mixed_ratio",
    "training.mismatch_bound",
    "training.mismatch_cap",  # needs a correction: see below
    "training.index_refresh",
    "training.lora",  # see `test_lora`
    "training.trl",  # see `test_passed_on`
    "warm_start.lora",
    "warm_start.trl",
}
"""Settings that are none of TRL's."""


@pytest.mark.parametrize("preset", NAMES)
def test_a_preset_leads_to_the_arguments_that_are_stored(preset):
    stored, now = golden_path(preset).read_text(encoding="utf-8"), golden_text(preset)
    changed = "\n".join(difflib.unified_diff(stored.splitlines(), now.splitlines(), "stored", "now", lineterm="", n=2))
    assert not changed, f"{changed}\nif this is meant, `make golden` stores it"


def test_every_preset_is_stored_and_nothing_else():
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.json" for name in NAMES}


@pytest.mark.parametrize("setting", GRPO)
def test_a_setting_of_training_changes_these_arguments_and_no_other(setting):
    value, expected = GRPO[setting]
    assert changes(lambda *overrides: grpo(read(NGRPOTrainingConfig, *overrides)), setting, value) == expected


@pytest.mark.parametrize("setting", SFT)
def test_a_setting_of_the_warm_start_changes_these_arguments_and_no_other(setting):
    value, expected = SFT[setting]
    assert changes(lambda *overrides: sft(read(SFTWarmStartConfig, *overrides)), setting, value) == expected


@pytest.mark.parametrize("loss_type", ["sapo", "vespo", "cispo", "luspo"])
def test_every_loss_of_trl_is_passed_on(loss_type):
    more = {"cispo": ["training.epsilon_high=5"], "luspo": ["training.importance_sampling_level=sequence"]}
    assert (
        grpo(read(NGRPOTrainingConfig, f"training.loss_type={loss_type}", *more.get(loss_type, ()))).loss_type
        == loss_type
    )


def test_the_logits_of_training_are_in_float32_where_it_is_asked_for():
    half = (*SMALL, "model.dtype=bfloat16")
    before, after = (
        grpo(read(NGRPOTrainingConfig, *half, f"training.cast_lm_head_to_fp32={on}")).to_dict()
        for on in ("false", "true")
    )
    assert {name: after[name] for name in after if after[name] != before[name]} == {"cast_lm_head_to_fp32": True}


def test_the_cap_of_a_correction_is_passed_on():
    overrides = ("training.mismatch_correction=sequence_truncate", "training.mismatch_cap=2")
    arguments = grpo(read(NGRPOTrainingConfig, *overrides))
    assert arguments.vllm_importance_sampling_mode == "sequence_truncate"
    assert arguments.vllm_importance_sampling_clip_max == 2


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_every_schedule_has_a_warm_up(schedule, expected):
    arguments = grpo(read(NGRPOTrainingConfig, f"training.lr_scheduler={schedule}", "training.warmup_ratio=0.5"))
    assert (arguments.lr_scheduler_type, arguments.warmup_steps) == (expected, 12)


def test_the_policy_is_measured_as_often_as_it_is_asked_for():
    setting, value = "training.selection.steps", 4
    before = grpo(read(NGRPOTrainingConfig, *SMALL))
    assert (before.eval_steps, before.save_steps) == (read(NGRPOTrainingConfig).training.save_steps,) * 2
    assert changes(lambda *overrides: grpo(read(NGRPOTrainingConfig, *overrides)), setting, value) == {"eval_steps": 4}


def test_no_setting_is_forgotten():
    """A new setting belongs into one of the tables above, or among those of which TRL knows nothing."""
    sections = {"training": TrainingConfig, "rollout": RolloutConfig, "warm_start": WarmStartConfig}
    settings = {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields}
    assert settings == {setting for setting in {*GRPO, *SFT} if "." in setting and "model" not in setting} | ELSEWHERE


# --- the trainer ---------------------------------------------------------------------------------------------------------


class Built(Exception):
    """Ends a training where its trainer would be built, with what it would be built with."""


def built(tmp_path, *overrides: str) -> dict[str, Any]:
    directory, model = tiny_model()
    tokenizer = load_tokenizer(directory, model.config.vocab_size)

    def build(**arguments: Any) -> None:
        raise Built(arguments)

    with (
        machine(),
        patch.object(policy_optimization, "NGRPOTrainer", build),
        pytest.raises(Built) as caught,
    ):
        policy_optimization.train_policy(
            model=model,
            start=directory,
            tokenizer=tokenizer,
            dataset=Dataset.from_list([{"prompt": CHAT, "answer": "2"}]),
            validation=None,
            index=index_of(model, tokenizer),
            config=read(NGRPOTrainingConfig, *overrides),
            work=tmp_path,
            output=tmp_path / "model",
        )
    return caught.value.args[0]


@pytest.mark.parametrize("masked", [True, False])
def test_mixed_positions_are_left_out_of_the_loss_where_it_is_asked_for(tmp_path, masked):
    arguments = built(tmp_path, f"training.mask_mixed_positions={str(masked).lower()}")
    assert arguments["mask_mixed_positions"] is masked


def test_the_ratio_of_mixed_steps_is_what_is_asked_for(tmp_path):
    assert built(tmp_path)["mixed_ratio"] == "policy"
    assert built(tmp_path, *SMALL, "training.num_iterations=2", "training.mixed_ratio=one")["mixed_ratio"] == "one"


@pytest.mark.parametrize(("correction", "corrected"), [("off", False), ("token_mask", True)])
def test_mismatch_is_corrected_and_bounded_where_it_is_asked_for(tmp_path, correction, corrected):
    arguments = built(tmp_path, f"training.mismatch_correction={correction}", "training.mismatch_bound=0.5")
    assert arguments["correct_mismatch"] is corrected
    assert arguments["mismatch_bound"] == 0.5


@pytest.mark.parametrize(("refresh", "versions"), [("at_start", [0, 0]), ("every_batch", [0, 1])])
def test_the_index_follows_the_weights_as_often_as_it_is_asked_to(tmp_path, refresh, versions):
    mixer_of = built(tmp_path, f"training.index_refresh={refresh}")["current_mixer"]
    model = copy.deepcopy(tiny_model()[1])
    seen = [mixer_of(model).index_version]
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)
    seen.append(mixer_of(model).index_version)
    assert seen == versions


# --- engines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "argument"),
    [
        ("rollout.batch_size", 7, "max_num_seqs"),
        ("rollout.vllm.tensor_parallel_size", 2, "tensor_parallel_size"),
        ("rollout.vllm.gpu_memory_utilization", 0.7, "gpu_memory_utilization"),
        ("model.dtype", "bfloat16", "dtype"),
    ],
)
def test_vllm_is_made_with_the_settings_of_rollouts(setting, value, argument):
    asked, _ = rollouts(read(NGRPOTrainingConfig, "rollout.engine=vllm", f"{setting}={value}"))
    assert asked["made with"][argument] == value


@pytest.mark.parametrize(
    ("setting", "value", "argument"),
    [
        ("evaluation.batch_size", 7, "max_num_seqs"),
        ("evaluation.vllm.tensor_parallel_size", 2, "tensor_parallel_size"),
        ("evaluation.vllm.gpu_memory_utilization", 0.7, "gpu_memory_utilization"),
        ("model.dtype", "bfloat16", "dtype"),
    ],
)
def test_vllm_is_made_with_the_settings_of_evaluation(setting, value, argument):
    measured = evaluation(read(BenchmarkEvaluationConfig, "evaluation.engine=vllm", f"{setting}={value}"))
    assert measured["made with"][argument] == value


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_either_engine_is_asked_for_the_same(engine):
    overrides = (
        f"rollout.engine={engine}",
        f"evaluation.engine={engine}",
        *(f"rollout.{setting}" for setting in ("temperature=0.9", "max_tokens=20")),
        *(f"mixing.{setting}" for setting in ("strategy=gaussian", "rate=0.3", "noise_std=0.4")),
        *(f"training.selection.{setting}" for setting in ("samples=3", "temperature=0.5", "top_p=0.8")),
        *(f"evaluation.{setting}" for setting in ("temperature=0.4", "top_p=0.7", "max_tokens=21")),
        'evaluation.mixing={"rate": 0.2, "k": 2}',
    )
    asked, validation = rollouts(read(NGRPOTrainingConfig, *overrides))
    measured = evaluation(read(BenchmarkEvaluationConfig, *overrides))
    assert request(asked["asked for"]) == (0.9, 1.0, 20, 0.3, 1, 0.4)
    assert (validation["samples"], request(validation)) == (3, (0.5, 0.8, 20, 0.0, 1, 0.0))
    assert request(measured["asked for"]) == (0.4, 0.7, 21, 0.2, 2, 0.0)


def request(asked: dict[str, Any]) -> tuple[object, ...]:
    """Return temperature, nucleus, length, and rate, candidates and noise of mixing, whichever engine was asked."""
    own = asked["extra_args"]["ngrpo"] if "extra_args" in asked else asked
    mixing = asked.get("mixing", own) or {"rate": 0.0, "strategy": None}
    strategy = {"k": 1, "noise_std": 0.0} | (mixing["strategy"] or {})
    if "extra_args" in asked:
        assert (asked["temperature"], asked["max_tokens"]) == (own["temperature"], own["max_tokens"])
    return (
        *(own[name] for name in ("temperature", "top_p", "max_tokens")),
        *(mixing["rate"], strategy["k"], strategy["noise_std"]),
    )


def read(section: type[Any], *overrides: str) -> Any:
    return select(load_config(PRESETS / "tiny.toml", overrides), section)


def changes(translate: Any, setting: str, value: object) -> dict[str, object]:
    """Return the arguments that a setting changes, as they are with it."""
    before, after = (translate(*SMALL, *more).to_dict() for more in ((), (f"{setting}={value}",)))
    return {name: after[name] for name in after if after[name] != before[name]}


def test_processes_that_shard_a_bfloat16_model_sum_gradients_and_hand_out_logits_in_float32():
    config = load_config(PRESETS / "paper-1.5b.toml")
    arguments = grpo(select(config, NGRPOTrainingConfig), processes=8)
    policy = arguments.fsdp_plugin_args["mixed_precision_policy"]
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    alone = grpo(select(load_config(PRESETS / "tiny.toml"), NGRPOTrainingConfig))
    assert alone.fsdp_plugin_args is None
