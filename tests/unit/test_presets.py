from pathlib import Path

import pytest

from ngrpo.config import HubSource, RunConfig, load_config
from ngrpo.config.template_file import PLAIN
from ngrpo.sizing.stages import needs_of
from ngrpo.stages.declarations import STAGES

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))

# k, temperature, rate, learning rate, KL coefficient: Table 6 of the paper, and the two released configurations.
PUBLISHED = {
    "paper-1.5b": (3, 0.7, 0.1, 1e-6, 0.001),
    "paper-7b": (3, 0.7, 0.1, 1e-6, 0.001),
    "paper-llama-3.2-1b": (3, 0.7, 0.1, 1e-6, 0.001),
    "paper-qwen3-1.7b-base": (3, 0.7, 0.1, 1e-6, 0.001),
    "authors-release-1.5b": (2, 1.0, 0.1, 5e-7, 0.01),
    "authors-release-7b": (3, 1.0, 0.15, 1e-6, 0.001),
}
PAPER = [name for name in PUBLISHED if name.startswith("paper-")]
RELEASE = [name for name in PUBLISHED if name.startswith("authors-release-")]
MODELS = {
    "1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "ad9f0ae0864d7fbcd1cd905e3c6c5b069cc8b562"),
    "7b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "916b56a44061fd5cd7d6a8fb632557ed4f724f60"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08"),
    "qwen3-1.7b-base": ("Qwen/Qwen3-1.7B-Base", "ea980cb0a6c2ae4b936e82123acc929f1cec04c1"),
}
SUFFIX = r"Let's think step by step and output the final answer within \boxed{}"


def preset(name: str) -> RunConfig:
    return load_config(PRESETS / f"{name}.toml")


def test_the_presets_are_all_there() -> None:
    assert set(NAMES) == {"tiny", "countdown", "smollm2", "one-gpu", *PUBLISHED}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_asks_resources_for_stages_only(name: str) -> None:
    assert set(preset(name).resources) <= set(STAGES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    config = preset(name)
    assert PUBLISHED[name] == (
        config.mixing.k,
        config.rollout.temperature,
        config.mixing.rate,
        config.training.learning_rate,
        config.training.kl_coefficient,
    )
    size = name.removeprefix("paper-").removeprefix("authors-release-")
    assert (config.model.source.id, config.model.source.revision) == MODELS[size]
    assert (config.mixing.strategy, config.rollout.group_size, config.training.prompts_per_batch) == ("neighbor", 4, 64)
    assert (config.data.max_prompt_tokens, config.rollout.max_tokens, config.warm_start.steps) == (4096, 8192, 0)
    training = config.training
    # An epoch of 40 000 problems; each batch of 256 sequences is used for four updates of 64.
    assert (training.updates_per_batch, training.num_iterations, training.steps) == (4, 1, 2520)
    assert training.prompts_per_batch * config.rollout.group_size / training.updates_per_batch == 64
    selection = training.selection
    assert (selection.benchmark, selection.samples, selection.temperature, selection.top_p) == ("aime24", 32, 0.6, 0.95)
    evaluation = config.evaluation
    assert (evaluation.samples, evaluation.pass_at, evaluation.max_tokens) == (32, (1, 16, 32), 8192)
    assert (evaluation.temperature, evaluation.top_p, evaluation.mixing) == (0.6, 0.95, None)
    assert evaluation.string_match == ("math500",)
    assert (config.rollout.engine, evaluation.engine, config.model.dtype) == ("vllm", "vllm", "bfloat16")
    assert [each.vllm.gpu_memory_utilization for each in (config.rollout, evaluation)] == [0.4, 0.9]
    assert [each.vllm.tensor_parallel_size for each in (config.rollout, evaluation)] == [1, 1]
    assert config.rollout.vllm.options == evaluation.vllm.options == {}, "the rest is as vLLM has it"
    assert config.neighbors.metric == "cosine"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_objective_has_nothing_that_trl_adds_by_default(name: str) -> None:
    training = preset(name).training
    assert training.use_bias_correction_kl is False, "not the KL estimate of the paper, nor verl's"
    assert training.mismatch_correction == "off"
    assert training.mask_mixed_positions is False
    assert training.mask_truncated_completions is False
    assert (training.scale_rewards, training.importance_sampling_level) == ("group", "token")
    assert (training.clip_epsilon, training.epsilon_high, training.max_grad_norm) == (0.2, None, 1.0)
    assert (training.top_entropy_quantile, training.entropy_coefficient) == (1.0, 0.0)
    assert (training.lr_scheduler, training.warmup_ratio, training.adam_beta2) == ("constant", 0.0, 0.999)
    assert training.trl == {}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_objective(name: str) -> None:
    training = preset(name).training
    assert (training.loss_type, training.delta, training.weight_decay) == ("grpo", None, 0.0)
    assert (training.save_steps, training.selection.steps) == (120, None)
    assert (preset(name).mixing.label, preset(name).mixing.weights) == ("anchor", "softmax")
    assert preset(name).data.prompt_suffix == f"{SUFFIX}."


@pytest.mark.parametrize("name", RELEASE)
def test_the_releases_objective(name: str) -> None:
    config = preset(name)
    training = config.training
    assert (training.loss_type, training.micro_batch_size) == ("bnpo", 2), "a token mean over two sequences"
    assert (training.delta, training.weight_decay) == (3.0, 0.01)
    assert (training.save_steps, training.selection.steps) == (40, 4), "saved every tenth batch, measured after each"
    assert config.data.prompt_suffix == SUFFIX
    asked = {name: source.prompt_suffix for name, source in config.data.benchmarks.items()}
    assert asked.pop("gpqa_diamond") == preset("paper-1.5b").data.benchmarks["gpqa_diamond"].prompt_suffix
    assert set(asked.values()) == {f"{SUFFIX}."}
    assert (config.mixing.label, config.mixing.weights, config.mixing.end_marker) == ("sampled", "release", "</think>")


def test_base_models_without_a_chat_template_get_one() -> None:
    assert preset("paper-llama-3.2-1b").model.chat_template == PLAIN
    assert all(preset(name).model.chat_template is None for name in PUBLISHED if "llama" not in name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_sets(name: str) -> None:
    data = preset(name).data
    assert data.train.id == "agentica-org/DeepScaleR-Preview-Dataset"
    columns = {}
    for benchmark, source in data.benchmarks.items():
        assert isinstance(source, HubSource)
        columns[benchmark] = (
            source.id,
            source.split,
            source.problem_column,
            source.answer_column,
            source.answer_is_boxed,
        )
    assert columns == {
        "aime24": ("math-ai/aime24", "test", "problem", "solution", True),
        "aime25": ("math-ai/aime25", "test", "problem", "answer", False),
        "amc23": ("math-ai/amc23", "test", "question", "answer", False),
        "math500": ("HuggingFaceH4/MATH-500", "test", "problem", "answer", False),
        "gpqa_diamond": ("Idavidrein/gpqa", "train", "Question", "Correct Answer", False),
    }
    gpqa = data.benchmarks["gpqa_diamond"]
    assert gpqa.subset == "gpqa_diamond"
    assert gpqa.gated
    assert gpqa.wrong_answer_columns == tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
    assert not any(source.gated for name, source in data.benchmarks.items() if name != "gpqa_diamond")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_experiments_differ_in_their_settings_only(name: str) -> None:
    first, this = preset("paper-1.5b"), preset(name)
    assert this.evaluation == first.evaluation
    if name in PAPER:
        assert this.data == first.data
    assert this.resources["ngrpo_training"].gpus > 0


@pytest.mark.parametrize("name", ["tiny", "countdown", "smollm2"])
def test_the_embedded_presets_need_no_hub_and_no_gpu(name: str) -> None:
    config = preset(name)
    sources = [config.model.source, config.data.train, config.data.warm_start, *config.data.benchmarks.values()]
    assert all(source.kind != "hub" for source in sources)
    assert all(resources.gpus == 0 for resources in config.resources.values())


def test_one_gpu_is_enough_for_its_preset() -> None:
    config = preset("one-gpu")
    assert {resources.gpus for resources in config.resources.values() if resources.gpus} == {1}
    for stage in ("ngrpo_training", "benchmark_evaluation"):
        needs = needs_of(config, stage)
        assert needs.gpu is not None
        assert 0 < needs.gpu.gib <= config.resources[stage].gpu_memory_gib == 24
    # The problems that select a checkpoint come from the training split: what both hold is left out of the training.
    validation, train = config.data.benchmarks["validation"], config.data.train
    assert (validation.id, validation.split, validation.revision) == (train.id, train.split, train.revision)
    assert config.data.benchmarks["gsm8k"].split == "test"


@pytest.mark.parametrize(("name", "benchmark"), [("tiny", "arithmetic"), ("countdown", "countdown")])
def test_a_generated_task_reports_on_problems_that_nothing_was_chosen_on(name: str, benchmark: str) -> None:
    config = preset(name)
    data = config.data
    assert {data.warm_start.fold, data.train.fold} == {"warm_start", "train"}
    assert {each: source.fold for each, source in data.benchmarks.items()} == {
        benchmark: "held_out",
        "validation": "selection",
    }
    assert config.training.selection.benchmark == "validation"
    assert config.promotion.benchmark == benchmark


def test_models_of_different_presets_do_not_compete() -> None:
    assert len({preset(name).promotion.model_name for name in NAMES}) == len(NAMES)
