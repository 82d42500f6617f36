"""The library: TRL's call with one import changed, an index from a model, and clear errors for what is not supported."""

import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig

from how_tos import GENERATE, INDEX, MODEL, TRAIN, WORDS_OF_MODEL, how_to, prepare
from ngrpo import NeighborIndex, NGRPOConfig, NGRPOTrainer, mixing_llm
from ngrpo.config import MixingConfig, NeighborsConfig
from ngrpo.errors import ConfigError, DataError, TrainingError
from ngrpo.training.policy_weights import merged_parameters
from ngrpo.training.trl_grpo import GRPOTrainer
from replay import replay_error
from tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("place")
    prepare(directory)
    return directory


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch):
    """TRL computes in bfloat16 unless told otherwise, and refuses to on a processor unless told so; it can."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


@pytest.fixture
def here(place, monkeypatch):
    """The working directory, in which the names of the how-tos are directories."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    return place


@pytest.mark.parametrize("call", [TRAIN, INDEX, GENERATE])
def test_a_how_to_has_fewer_than_15_lines(call):
    assert len(how_to(call).splitlines()) < 15


def test_the_how_to_of_training_trains(here):
    values = {}
    exec(how_to(TRAIN), values)
    trainer = values["trainer"]
    assert trainer.state.global_step == 6, "two prompts, three epochs"
    assert [entry for entry in trainer.state.log_history if "train_loss" in entry]
    assert Path("Qwen3-0.6B-N-GRPO").is_dir()


def test_the_how_to_of_the_index_names_neighbors(here, capsys):
    exec(how_to(INDEX), {})
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert NeighborIndex.load("neighbors").neighbors_of(" cat")[0].token in WORDS_OF_MODEL


def rows(count: int = 8, *, chat: bool = True) -> Dataset:
    texts = [f"{number} + 1 =" for number in range(count)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}] if chat else text} for text in texts])


def distinct(completions, **_):
    """The kind of reward that TRL's quick start has: how many different characters a text holds."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float(len(set(text.lower()))) for text in texts]


def quickly(output: Path, **changes) -> dict:
    settings = {
        "output_dir": str(output),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return settings | changes


def trainer(
    output: Path, model, *, dataset=None, index=None, eval_dataset=None, peft_config=None, **changes
) -> NGRPOTrainer:
    args = NGRPOConfig(**quickly(output, **({"rate": 0.5} | changes)))
    return NGRPOTrainer(model, distinct, args, dataset or rows(), eval_dataset, peft_config=peft_config, index=index)


def logged(trained: NGRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trained.state.log_history if name in entry]


def test_a_program_for_trl_runs_with_its_import_changed(here, tmp_path):
    """A data set of plain texts, a reward function, `GRPOConfig` and `GRPOTrainer`: everything after the import is TRL's."""
    (here / "trl-lib" / "tldr").mkdir(exist_ok=True)
    rows(4, chat=False).to_json(here / "trl-lib" / "tldr" / "train.jsonl")
    program = f"""
def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]

training_args = GRPOConfig({str(tmp_path)!r}, max_steps=1, max_completion_length=8, logging_steps=1)
trainer = GRPOTrainer(
    model={MODEL!r},
    reward_funcs=reward_len,
    args=training_args,
    train_dataset=load_dataset("trl-lib/tldr", split="train"),
)
trainer.train()
trainer.save_model({str(tmp_path / "saved")!r})
"""
    rewards = {}
    for name, names in {
        "trl": (GRPOConfig, GRPOTrainer),
        "ngrpo": (NGRPOConfig, NGRPOTrainer),
        "the trainer alone": (GRPOConfig, NGRPOTrainer),
    }.items():
        values = {"load_dataset": load_dataset, **dict(zip(("GRPOConfig", "GRPOTrainer"), names, strict=True))}
        exec(program, values)
        rewards[name] = logged(values["trainer"], "rewards/reward_len/mean")
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert bool(logged(values["trainer"], "mixing/gate_rate")) == (name != "trl")
    assert all(len(values) == 1 for values in rewards.values())


@pytest.mark.parametrize("form", ["name", "path", "model"])
def test_the_model_may_be_named_or_at_hand(here, tmp_path, form):
    model = {"name": MODEL, "path": here / MODEL, "model": AutoModelForCausalLM.from_pretrained(MODEL)}[form]
    trained = trainer(tmp_path, model, rate=1.0, end_marker=None)
    before = trained.model.get_input_embeddings().weight.detach().clone()
    trained.train()
    assert min(logged(trained, "mixing/gate_rate")) > 0.5
    assert not torch.equal(trained.model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": "gaussian"},
        {"mask_mixed_positions": True, "index_refresh": "every_batch"},
        {"label": "sampled", "weights": "release", "mixed_ratio": "one"},
        {"strategy": "gumbel", "gumbel_temperature": 1.0, "k": 5},
    ],
)
def test_rollouts_are_scored_on_the_inputs_they_were_generated_from(here, tmp_path, chat, changes):
    """At the first step nothing has moved: old policy, policy and rollout agree, so the ratio is 1 and nothing is clipped."""
    one = trainer(tmp_path, MODEL, dataset=rows(chat=chat), steps_per_generation=2, **changes)
    one.model.train()
    batch = one._generate_and_score_completions([one.train_dataset[row // 4] for row in range(8)])
    inside = batch["completion_mask"].bool()
    assert batch["mix_mask"].any()
    assert (batch["old_per_token_logps"] - batch["sampling_per_token_logps"])[inside].abs().max() <= 1e-4
    assert ("tool_mask" in batch) == ("mask_mixed_positions" in changes)


def test_mismatch_is_corrected_and_bounded_where_it_is_asked_for(here, tmp_path):
    one = trainer(tmp_path, MODEL, correct_mismatch=True, mismatch_bound=1e-9)
    with pytest.raises(TrainingError, match=r"more than NGRPOConfig\.mismatch_bound=1e-09"):
        one.train()
    assert one._metrics["train"]["sampling/importance_sampling_ratio/max"] == pytest.approx([1.0], abs=1e-3)


def test_token_is_plain_grpo(here, tmp_path):
    trained = trainer(tmp_path, MODEL, strategy="token")
    trained.train()
    assert trained.index is None
    assert logged(trained, "mixing/gate_rate") == []


def test_training_goes_on_from_a_checkpoint_with_its_index(here, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "index_refresh": "every_batch"}
    whole = trainer(tmp_path / "whole", MODEL, max_steps=4, **saving)
    whole.train()
    first = trainer(tmp_path / "parts", MODEL, max_steps=4, **saving)
    first.add_callback(StopAt(2))
    first.train()
    assert (tmp_path / "parts" / "checkpoint-2" / "neighbor_index" / "index.json").is_file()
    second = trainer(tmp_path / "parts", MODEL, max_steps=4, **saving)
    second.train(resume_from_checkpoint=True)
    assert second.index.version == whole.index.version > 1
    ours, theirs = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def test_an_evaluation_is_trls_and_is_not_mixed(here, tmp_path):
    """It comes in the middle of a rollout batch, the rest of which is still trained on as it was mixed."""
    one = trainer(
        tmp_path,
        MODEL,
        eval_dataset=rows(4),
        steps_per_generation=4,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=4,
        max_steps=4,
    )
    generate, asked, scored = one._current, [], []
    one._current_mixer = lambda model: asked.append((one.model.training, generate(model))) or asked[-1][1]
    loss = one._compute_loss

    def watched(model, inputs):
        scored.append((model.training, one._mixer is not None))
        return loss(model, inputs)

    one._compute_loss = watched
    one.train()
    assert len(logged(one, "eval_reward")) == 4
    assert {(training, mixer is not None) for training, mixer in asked} == {(True, True), (False, False)}
    assert set(scored) == {(True, True), (False, False)}


def test_an_index_can_be_brought_along(here, tmp_path, monkeypatch):
    NeighborIndex.from_model(MODEL, candidates=4).save(tmp_path / "index")
    monkeypatch.setattr("ngrpo.neighbors.index.NeighborIndex.build", lambda *_, **__: pytest.fail("built again"))
    trained = trainer(tmp_path / "out", MODEL, index=tmp_path / "index", max_steps=1)
    trained.train()
    assert trained.index.neighbors.shape[1] == 4
    with pytest.raises(
        ConfigError, match=r"NGRPOTrainer\.index: built by metric='cosine' where NGRPOConfig\.metric='l2'"
    ):
        trainer(tmp_path / "out", MODEL, index=tmp_path / "index", metric="l2")
    other = save_tiny_model(tmp_path / "other")
    with pytest.raises(DataError, match="it is the index of another model"):
        trainer(tmp_path / "out", other, index=tmp_path / "index", end_marker=None).train()


def test_defaults_are_those_of_a_preset():
    config, mixing, neighbors = NGRPOConfig("out"), MixingConfig(), NeighborsConfig()
    ours = {each.name for each in fields(NGRPOConfig)} - {each.name for each in fields(GRPOConfig)}
    for section in (mixing, neighbors):
        for name in ours & type(section).model_fields.keys():
            assert getattr(config, name) == getattr(section, name), name
    assert config.settings().mixing == mixing
    assert config.settings().neighbors == neighbors
    assert type(config).__mro__[1] is GRPOConfig


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k": 0}, "NGRPOConfig.k: Input should be greater than or equal to 1 (value 0)"),
        (
            {"k": 40},
            "NGRPOConfig.k=40 exceeds candidates=32 plus the anchor: raise candidates to at least 39 or lower k",
        ),
        ({"rate": 1.5}, "NGRPOConfig.rate: "),
        ({"rate": "often"}, "NGRPOConfig.rate: "),
        ({"strategy": "best"}, "NGRPOConfig.strategy: "),
        ({"end_marker": ""}, "NGRPOConfig.end_marker: "),
        ({"candidates": 0}, "NGRPOConfig.candidates: "),
        ({"metric": "dice"}, "NGRPOConfig.metric: "),
        ({"engine": "tgi"}, "NGRPOConfig.engine='tgi': choose one of 'transformers', 'vllm'"),
        ({"index_refresh": "never"}, "NGRPOConfig.index_refresh='never': choose one of"),
        ({"label": "argmax"}, "NGRPOConfig.label: "),
        (
            {"weights": "release", "strategy": "soft"},
            "NGRPOConfig.weights='release' has no effect with strategy='soft'",
        ),
        ({"mixed_ratio": 1.0}, "NGRPOConfig.mixed_ratio=1.0: choose one of 'policy', 'one'"),
        (
            {"mixed_ratio": "one"},
            "NGRPOConfig.mixed_ratio='one': has no effect where a rollout batch is used for one step",
        ),
        (
            {"mixed_ratio": "one", "mask_mixed_positions": True, "num_iterations": 2},
            "NGRPOConfig.mixed_ratio='one': has no effect with mask_mixed_positions=True",
        ),
        ({"mismatch_bound": -0.1}, "NGRPOConfig.mismatch_bound=-0.1: a number above 0, or None"),
        ({"mismatch_bound": float("nan")}, "NGRPOConfig.mismatch_bound=nan: a number above 0, or None"),
        ({"rollout_batch_size": 0}, "NGRPOConfig.rollout_batch_size=0: a whole number above 0"),
        ({"temperature": 0.0}, "NGRPOConfig.temperature=0.0: mixing divides by it"),
        ({"top_k": 20}, "NGRPOConfig.top_k=20: rollouts are sampled by temperature and top_p alone"),
        ({"repetition_penalty": 1.1}, "NGRPOConfig.repetition_penalty=1.1: "),
        ({"generation_kwargs": {"num_beams": 2}}, "NGRPOConfig.generation_kwargs={'num_beams': 2}: "),
        ({"vllm_mode": "server"}, "NGRPOConfig.vllm_mode='server': the engine lives in the training process"),
        ({"fp16": True, "bf16": False}, "NGRPOConfig.fp16=True: "),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_line(changes, said):
    with pytest.raises(ConfigError) as caught:
        NGRPOConfig("out", **changes)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        NGRPOConfig("out", k=0, rate=2.0, engine="tgi", metric="dice")
    assert len(str(caught.value).splitlines()) == 4


def test_use_vllm_is_our_engine_on_vllm():
    with pytest.warns(UserWarning, match=r"use_vllm=True: rollouts come from ngrpo's vLLM engine"):
        config = NGRPOConfig("out", use_vllm=True)
    assert (config.engine, config.use_vllm) == ("vllm", False)
    plain = GRPOConfig("out", learning_rate=3e-5, use_vllm=True)
    with pytest.warns(UserWarning, match="use_vllm=True"):
        taken = NGRPOConfig.of(plain)
    assert (taken.engine, taken.learning_rate, taken.k, taken.rate) == ("vllm", 3e-5, 3, 0.1)
    assert plain.use_vllm, "the caller's is as it was"
    assert type(plain) is GRPOConfig


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_rollouts_are_computed_as_the_policy_is(here, tmp_path, monkeypatch, bf16, dtype):
    """Else policy and rollouts would differ by the rounding; vLLM gets weights by the names of their files."""
    made = {}
    monkeypatch.setattr("ngrpo.library.trainer.start_engine", lambda *_, **settings: made.update(settings))
    monkeypatch.setattr("ngrpo.rollout.vllm.engine.VLLMEngine", lambda *_, **settings: made.update(settings))
    for engine in ("transformers", "vllm"):
        made.clear()
        trained = trainer(tmp_path / engine, MODEL, bf16=bf16, engine=engine)
        trained._start_engine(trained.model)
        assert made["dtype"] == dtype
    names = {name for name, _ in made["as_saved"](trained.model.named_parameters())}
    assert names >= load_file(Path(MODEL) / "model.safetensors").keys()


@pytest.mark.parametrize("name", ["quantization_config", "tools", "rollout_func", "environment_factory"])
def test_what_the_trainer_cannot_do_is_refused(name):
    with pytest.raises(ConfigError, match=rf"^NGRPOTrainer\.{name}: [^\n]*$"):
        NGRPOTrainer(MODEL, distinct, train_dataset=rows(), **{name: [print]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zero_stage": 3}, "deepspeed: stage 3 leaves no whole embedding to mix from: use stage 2 at most"),
        ({"fsdp_version": 1}, "fsdp: version 1 leaves no whole embedding to mix from: set fsdp_version to 2"),
        ({"vlm": True}, r"NGRPOTrainer\.processing_class: prompts with images are not supported"),
    ],
)
def test_what_a_model_is_sharded_by_or_reads_is_refused(changes, said):
    setup = {"zero_stage": 2, "fsdp_version": 2, "vlm": False} | changes
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=setup["fsdp_version"]))
    one = SimpleNamespace(
        args=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=setup["zero_stage"])),
        model=torch.nn.Linear(1, 1),
        is_fsdp_enabled=True,
        accelerator=SimpleNamespace(state=state),
        _is_vlm=setup["vlm"],
    )
    with pytest.raises(ConfigError, match=said):
        NGRPOTrainer._require_supported(one)


def test_adapters_are_trained_and_rollouts_come_from_the_merged_weights(here, tmp_path):
    errors = []
    trained = trainer(tmp_path, MODEL, peft_config=LoraConfig(r=4, target_modules="all-linear"), learning_rate=1e-2)
    embedding = trained.model.get_input_embeddings().weight.detach().clone()

    def replayed(batch):
        whole = AutoModelForCausalLM.from_pretrained(MODEL)
        whole.load_state_dict(strict=False, state_dict=dict(merged_parameters(trained.model)))
        errors.append(replay_error(whole, batch.prompts, batch.rollouts, trained._mixer, trained.temperature))
        return {}

    trained._observers = [replayed]
    trained.train()
    assert len(errors) > 1
    assert max(errors) <= 1e-4
    assert torch.equal(trained.model.get_input_embeddings().weight, embedding)
    assert trained.index.version == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([print], "list: only adapters of a peft.LoraConfig"),
        (LoraConfig(use_dora=True), "use_dora=True: rollouts would come from other weights"),
        (LoraConfig(lora_dropout=0.1), "lora_dropout=0.1: rollouts would"),
        (LoraConfig(modules_to_save=["embed_tokens"]), "modules_to_save="),
        (LoraConfig(init_lora_weights="pissa"), "init_lora_weights='pissa' changes base weights"),
        (LoraConfig(target_modules=["q_proj", "embed_tokens"]), "embed_tokens would move under the neighbor index"),
    ],
)
def test_adapters_that_are_no_product_of_two_matrices_are_refused(here, given, said):
    with pytest.raises(ConfigError, match=r"^NGRPOTrainer\.peft_config: ") as failure:
        NGRPOTrainer(MODEL, distinct, train_dataset=rows(), peft_config=given)
    assert said in str(failure.value)


def test_adapters_that_are_in_the_model_are_refused(here):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    model.peft_config = {"default": object()}
    with pytest.raises(ConfigError, match=r"^NGRPOTrainer\.model: it has adapters already"):
        NGRPOTrainer(model, distinct, train_dataset=rows())


def test_vllm_makes_room_for_the_longest_prompt_of_all_data(here, tmp_path):
    longer = Dataset.from_list([{"prompt": [{"role": "user", "content": "1 + 2 + 3 + 4 ="}]}])
    plain = trainer(tmp_path, MODEL)._longest_prompt()
    assert trainer(tmp_path, MODEL, eval_dataset=longer)._longest_prompt() == plain + 4
    assert trainer(tmp_path, MODEL, eval_dataset={"a": rows(2), "b": longer})._longest_prompt() == plain + 4
    streamed = trainer(tmp_path, MODEL, dataset=rows().to_iterable_dataset())
    with pytest.raises(ConfigError, match=r"NGRPOConfig\.vllm_max_model_length: missing"):
        streamed._longest_prompt()


def test_a_model_without_files_is_written_for_vllm(here, tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
    model.name_or_path = ""
    one = NGRPOTrainer(
        model,
        distinct,
        NGRPOConfig(**quickly(tmp_path / "out")),
        rows(),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
    )
    with one._on_disk(one.model) as directory:
        assert {"config.json", "model.safetensors"} <= {path.name for path in directory.iterdir()}
    assert not directory.exists()
    with trainer(tmp_path, MODEL)._on_disk(trainer(tmp_path, MODEL).model) as directory:
        assert directory == Path(MODEL)


def test_a_streamed_data_set_trains(here, tmp_path):
    trained = trainer(tmp_path, MODEL, dataset=rows().to_iterable_dataset())
    trained.train()
    assert len(logged(trained, "mixing/gate_rate")) == 2


def test_an_unknown_argument_of_the_trainer_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'trainset'"):
        NGRPOTrainer(MODEL, distinct, trainset=rows())


def test_an_end_marker_that_the_tokenizer_cannot_write_is_refused(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="end_marker='</think>' cannot be written with this tokenizer"):
        trainer(tmp_path / "out", model)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_an_index_is_that_of_the_stage(here, tmp_path, metric):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    named = NeighborIndex.from_model(MODEL, metric=metric, candidates=6)
    at_hand = NeighborIndex.from_model(model, tokenizer=tokenizer, metric=metric, candidates=6)
    assert torch.equal(named.neighbors, at_hand.neighbors)
    assert named.matches(model.get_input_embeddings().weight)
    named.save(tmp_path / "saved")
    loaded = NeighborIndex.load(tmp_path / "saved")
    assert loaded.neighbors_of("cat", 3) == named.neighbors_of("cat", 3)
    (best, similarity), *_ = named.neighbors_of("cat")
    weight = model.get_input_embeddings().weight.detach()
    ids = tokenizer.convert_tokens_to_ids(["cat", best])
    if metric == "cosine":
        assert similarity == pytest.approx(torch.cosine_similarity(*weight[ids], dim=0).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("cat dog", r"token 'cat dog': not one token of this model but 2 \('cat', 'dog'\); name one"),
        ("", "token '': not one token of this model but 0"),
        ("<eos>", "token '<eos>': special, added and unused tokens have no neighbors"),
    ],
)
def test_a_token_without_neighbors_is_refused(here, token, said):
    with pytest.raises(DataError, match=said):
        NeighborIndex.from_model(MODEL, candidates=3).neighbors_of(token)


def test_an_index_without_a_tokenizer_says_so(here, tmp_path):
    weight = torch.randn(8, 4)
    NeighborIndex.build(weight, torch.ones(8, dtype=torch.bool), candidates=2, block_rows=4).save(tmp_path)
    with pytest.raises(DataError, match=r"no tokenizer: build it with NeighborIndex\.from_model"):
        NeighborIndex.load(tmp_path).neighbors_of("cat")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"metric": "dice"}, r"NeighborIndex\.from_model\.metric: "),
        ({"candidates": 0}, r"NeighborIndex\.from_model\.candidates: "),
        ({"candidates": 1000}, "neighbors.candidates=1000 but a token has only"),
    ],
)
def test_an_impossible_index_is_refused(here, arguments, said):
    with pytest.raises((ConfigError, DataError), match=said):
        NeighborIndex.from_model(MODEL, **arguments)


def test_a_model_that_is_nowhere_is_one_line(here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"^model './nowhere': no such directory, and it cannot be fetched from the hub[^\n]*$"
    ):
        NeighborIndex.from_model("./nowhere")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, r"mixing_llm\.k: "),
        ({"strategy": "token"}, r"mixing_llm\.strategy='token': nothing to mix; use vllm\.LLM"),
        ({"worker_cls": "mine"}, r"mixing_llm\.worker_cls: ours to set"),
        ({"pipeline_parallel_size": 2}, r"mixing_llm\.pipeline_parallel_size=2: vLLM cannot mix with it"),
        ({"speculative_config": {"method": "ngram"}}, r"mixing_llm\.speculative_config=.*: vLLM cannot mix with it"),
    ],
)
def test_what_a_mixing_llm_cannot_be_is_refused_before_vllm_is_imported(arguments, said):
    with pytest.raises(ConfigError, match=said):
        mixing_llm(MODEL, **arguments)


FUNCTIONS = '''
import inspect
import sys


def functions(*packages):
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages and not hasattr(type(module), "_get_module"):
            for attribute, value in list(vars(module).items()):
                if callable(value):  # others are filled as modules are loaded
                    found[name, attribute] = value
                if isinstance(value, type) and value.__module__ == name:
                    found |= {(name, attribute, each): method for each, method in vars(value).items() if inspect.isroutine(method)}
    return found


def changed(before, *packages):
    """Return what is another one than before, or is new in a class that was there."""
    assert len(before) > 1000
    after = functions(*packages)
    new = [key for key in after if len(key) == 3 and key not in before and key[:2] in before]
    return [key for key, value in before.items() if after.get(key) is not value] + new
'''
IMPORTS = """
import ngrpo

heavy = {"torch", "transformers", "trl", "vllm", "pydantic", "datasets"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
try:
    ngrpo.Nothing
except AttributeError as error:
    assert "has no attribute 'Nothing'" in str(error)

import torch, transformers, trl.data_utils, trl.import_utils, trl.trainer.utils, accelerate, datasets


packages = ("trl", "transformers", "datasets", "accelerate")
before = functions(*packages)
from ngrpo import NGRPOConfig, NGRPOTrainer, NeighborIndex, mixing_llm
assert changed(before, *packages) == []
assert issubclass(NGRPOTrainer, trl.GRPOTrainer)
assert "vllm" not in sys.modules, "seconds, and 160 MB of every process"
assert not [name for name in sys.modules if name.startswith("trl.generation")], "to be imported whole when it is needed"
"""
WITH_VLLM = """
# `trl.GRPOTrainer(use_vllm=True)` in a process that has imported ours gets TRL's generation with vLLM.
from unittest import mock
from trl.import_utils import is_vllm_available
from trl.trainer import grpo_trainer
import trl.generation.vllm_generation as generation
import vllm

assert generation.LLM is vllm.LLM
assert generation.is_vllm_available is is_vllm_available and is_vllm_available()
with mock.patch.object(generation.VLLMGeneration, "__init__", lambda self, **arguments: setattr(self, "arguments", arguments)):
    made = grpo_trainer.VLLMGeneration(mode="colocate")
assert type(made) is generation.VLLMGeneration and made.arguments == {"mode": "colocate"}
assert grpo_trainer.VLLMGeneration is generation.VLLMGeneration

before = functions("trl", "vllm")
import ngrpo.library.mixing_llm
assert changed(before, "trl", "vllm") == []
"""


AFTER_TRL = """
from trl import GRPOConfig, GRPOTrainer, SFTTrainer

packages = ("trl", "transformers", "datasets", "accelerate")
before = functions(*packages)
from ngrpo import NGRPOConfig, NGRPOTrainer, NeighborIndex, mixing_llm
assert changed(before, *packages) == []
GRPOTrainer.train = lambda self: None
assert changed(before, *packages) == [("trl.trainer.grpo_trainer", "GRPOTrainer", "train")], "what this test is there to see"
"""


@pytest.mark.parametrize(
    "code", [IMPORTS if find_spec("vllm") is None else IMPORTS + WITH_VLLM, AFTER_TRL], ids=["first", "after trl"]
)
def test_importing_us_is_light_and_changes_nothing_of_trl_and_vllm(code):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FUNCTIONS + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
