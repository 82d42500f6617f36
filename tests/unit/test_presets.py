from pathlib import Path

import pytest

from ngrpo.config import HubSource, RunConfig, load_config
from ngrpo.stages.declarations import STAGES

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))

# k, temperature, rate, learning rate, KL coefficient, updates of a batch: Table 6 of the paper, and the two released configurations.
PUBLISHED = {
    "paper-1.5b": (3, 0.7, 0.1, 1e-6, 0.001, 1),
    "paper-7b": (3, 0.7, 0.1, 1e-6, 0.001, 1),
    "authors-release-1.5b": (2, 1.0, 0.1, 5e-7, 0.01, 4),
    "authors-release-7b": (3, 1.0, 0.15, 1e-6, 0.001, 4),
}


def preset(name: str) -> RunConfig:
    return load_config(PRESETS / f"{name}.toml")


def test_the_presets_are_all_there() -> None:
    assert set(NAMES) == {"tiny", "countdown", "smollm2", *PUBLISHED}


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
        config.training.updates_per_batch,
    )
    assert config.model.source.id.endswith(name.rpartition("-")[2].upper())
    assert (config.mixing.strategy, config.rollout.group_size, config.training.prompts_per_batch) == ("neighbor", 4, 64)
    assert (config.data.max_prompt_tokens, config.rollout.max_tokens, config.warm_start.steps) == (4096, 8192, 0)
    assert config.training.steps == 630 * config.training.updates_per_batch
    evaluation = config.evaluation
    assert (evaluation.samples, evaluation.pass_at, evaluation.max_tokens) == (32, (1, 16, 32), 8192)
    assert (evaluation.temperature, evaluation.top_p, evaluation.mixing) == (0.6, 0.95, None)
    assert evaluation.string_match == ("math500",)
    assert (config.rollout.engine, evaluation.engine, config.model.dtype) == ("vllm", "vllm", "bfloat16")
    assert [each.vllm.gpu_memory_utilization for each in (config.rollout, evaluation)] == [0.4, 0.9]
    assert [each.vllm.tensor_parallel_size for each in (config.rollout, evaluation)] == [1, 1]
    assert config.rollout.vllm.options == evaluation.vllm.options == {}, "the rest is as vLLM has it"
    assert config.data.prompt_suffix == r"Let's think step by step and output the final answer within \boxed{}."


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
    assert this.data == first.data
    assert this.evaluation == first.evaluation
    assert this.resources["ngrpo_training"].gpus > 0


@pytest.mark.parametrize("name", ["tiny", "countdown", "smollm2"])
def test_the_embedded_presets_need_no_hub_and_no_gpu(name: str) -> None:
    config = preset(name)
    sources = [config.model.source, config.data.train, config.data.warm_start, *config.data.benchmarks.values()]
    assert all(source.kind != "hub" for source in sources)
    assert all(resources.gpus == 0 for resources in config.resources.values())


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
