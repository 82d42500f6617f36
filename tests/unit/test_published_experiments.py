"""The experiments of the paper and of the authors' release: each arm has the published settings, and nothing else is different."""

import tomllib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tomli_w

from ngrpo.config import RunConfig, load_config
from ngrpo.config.inheritance import merge

PIPELINES = Path(__file__).parents[2] / "pipelines"
NAMES = sorted(path.stem for pattern in ("paper-*", "authors-*") for path in (PIPELINES / "experiments").glob(pattern))
ARMS = {
    "authors-release-1.5b": {"grpo", "grpo-same", "ngrpo", "stht", "k1"},
    "authors-release-7b": {"grpo", "ngrpo", "k1"},
    "paper-ablations": {"ngrpo", "k1", "k2", "k5", "rate5", "rate20", "inference"},
    "paper-gspo": {"gspo", "ngspo"},
    "paper-main": {"grpo", "stht", "gumbel", "rho1", "ngrpo", "k1"},
    "paper-main-7b": {"grpo", "ngrpo", "k1"},
    "paper-main-llama": {"grpo", "ngrpo", "k1"},
    "paper-main-qwen3": {"grpo", "ngrpo", "k1"},
    "paper-metric": {"cosine", "l2", "l1"},
}


def tree(name: str) -> dict[str, Any]:
    return tomllib.loads((PIPELINES / "experiments" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def arms(name: str) -> dict[str, RunConfig]:
    """Return the configuration of every arm, as a preset that extends the one of the experiment."""
    file = tree(name)
    preset = {"extends": str(PIPELINES / "presets" / f"{file['preset']}.toml")}
    found = {}
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "arm.toml"
        for arm, settings in file["arms"].items():
            path.write_text(tomli_w.dumps(preset | merge(file.get("settings", {}), settings)), encoding="utf-8")
            found[arm] = load_config(path)
    return found


def differences(one: RunConfig, other: RunConfig) -> set[str]:
    """Return the settings that differ."""
    first, second = (_flat(config.model_dump(mode="json")) for config in (one, other))
    return {path for path in {*first, *second} if first.get(path) != second.get(path)}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: each for name, below in value.items() for key, each in _flat(below, f"{path}.{name}".strip(".")).items()
    }


def test_every_row_of_the_paper_has_its_experiment() -> None:
    assert {name: set(tree(name)["arms"]) for name in NAMES} == ARMS


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_fixes_its_primary_comparison(name: str) -> None:
    file = tree(name)
    assert len(set(file["seeds"])) == 3, "one seed has no interval"
    assert file["baseline"] in file["arms"]
    assert (file["benchmark"], file["measure"], file["equivalence"]) == ("aime25", "pass@16", 1.0)
    for config in arms(name).values():
        assert "aime25" in config.data.benchmarks
        assert config.training.selection.benchmark == "aime24", "what chose the checkpoint proves nothing"
        assert config.evaluation.samples == 32


@pytest.mark.parametrize("name", NAMES)
def test_arms_differ_in_what_they_are_about_and_in_nothing_else(name: str) -> None:
    file, found = tree(name), arms(name)
    preset = load_config(PIPELINES / "presets" / f"{file['preset']}.toml")
    for arm, config in found.items():
        asked = set(_flat(merge(file.get("settings", {}), file["arms"][arm]))) - {""}
        more = {"evaluation.mixing", "preset"} | {
            f"evaluation.mixing.{each}" for each in type(config.mixing).model_fields
        }
        assert differences(config, preset) <= asked | more, arm
    assert len({config.model_dump_json(exclude={"preset"}) for config in found.values()}) == len(found)


@pytest.mark.parametrize("name", [name for name in NAMES if "grpo" in ARMS[name]])
def test_arms_by_the_published_definitions(name: str) -> None:
    found = arms(name)
    assert found["grpo"].mixing.strategy == "token"
    ngrpo, control = found["ngrpo"].mixing, found["k1"].mixing
    release_of_1_5b = name == "authors-release-1.5b"
    assert (ngrpo.strategy, ngrpo.k) == ("neighbor", 2 if release_of_1_5b else 3)
    assert ngrpo.rate == (0.15 if name == "authors-release-7b" else 0.1)
    assert (control.strategy, control.k, control.rate) == ("neighbor", 1, ngrpo.rate)
    if "stht" in found:
        noise = found["stht"].mixing
        assert (noise.strategy, noise.noise_std, noise.rate) == ("gaussian", 0.33, 1.0)


def test_what_a_mixed_step_emits_and_weighs() -> None:
    main = arms("paper-main")
    gumbel, rho1 = main["gumbel"].mixing, main["rho1"].mixing
    assert (gumbel.strategy, gumbel.k, gumbel.rate) == ("gumbel", 3, 1.0)
    assert (rho1.strategy, rho1.k, rho1.rate, rho1.label) == ("neighbor", 3, 1.0, "sampled")
    paper = [config.mixing for name in NAMES if name.startswith("paper-") for config in arms(name).values()]
    assert {mixing.weights for mixing in paper} == {"softmax"}
    assert [mixing.label for mixing in paper].count("sampled") == 1
    for name in ("authors-release-1.5b", "authors-release-7b"):
        chosen = {arm: (config.mixing.label, config.mixing.weights) for arm, config in arms(name).items()}
        assert chosen.pop("ngrpo") == ("sampled", "release")
        assert chosen.pop("k1") == ("sampled", "softmax"), "a single weight is 1 either way"
        assert set(chosen.values()) == {("anchor", "softmax")}, "nothing of this is without mixing"


def test_the_released_comparison_is_confounded_and_says_what_it_would_be_otherwise() -> None:
    found = arms("authors-release-1.5b")
    recipes = {arm: (config.training.learning_rate, config.training.kl_coefficient) for arm, config in found.items()}
    assert recipes.pop("grpo") == (1e-6, 0.001)
    assert set(recipes.values()) == {(5e-7, 0.01)}
    of_7b = arms("authors-release-7b")
    assert {(each.training.learning_rate, each.training.kl_coefficient) for each in of_7b.values()} == {(1e-6, 0.001)}


def test_gspo_metrics_and_ablations() -> None:
    gspo, ngspo = (arms("paper-gspo")[arm] for arm in ("gspo", "ngspo"))
    assert {each.training.importance_sampling_level for each in (gspo, ngspo)} == {"sequence"}
    assert (gspo.mixing.strategy, ngspo.mixing.strategy) == ("token", "neighbor")
    assert gspo.training.updates_per_batch == 4, "with one, GSPO is GRPO"
    assert {arm: config.neighbors.metric for arm, config in arms("paper-metric").items()} == {
        "cosine": "cosine",
        "l2": "l2",
        "l1": "l1",
    }
    ablations = arms("paper-ablations")
    settings = {arm: (config.mixing.k, config.mixing.rate) for arm, config in ablations.items()}
    assert settings == {
        "ngrpo": (3, 0.1),
        "k1": (1, 0.1),
        "k2": (2, 0.1),
        "k5": (5, 0.1),
        "rate5": (3, 0.05),
        "rate20": (3, 0.2),
        "inference": (3, 0.1),
    }
    at_inference = ablations["inference"].evaluation.mixing
    assert (at_inference.strategy, at_inference.k, at_inference.rate) == ("neighbor", 3, 0.1)
    assert all(config.evaluation.mixing is None for arm, config in ablations.items() if arm != "inference")


def test_the_models_of_table_1() -> None:
    models = {name: {config.model.source.id for config in arms(name).values()} for name in NAMES if "main" in name}
    assert models == {
        "paper-main": {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"},
        "paper-main-7b": {"deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"},
        "paper-main-llama": {"meta-llama/Llama-3.2-1B"},
        "paper-main-qwen3": {"Qwen/Qwen3-1.7B-Base"},
    }


# By experiment and arm, averages over AIME25, AMC23 and MATH-500 as they are published: mean@32, best@16, best@32.
AVERAGES = {
    ("paper-main", "base"): (53.28, 73.05, 74.62),
    ("paper-main", "grpo"): (53.62, 75.49, 77.41),
    ("paper-main", "stht"): (52.42, 75.28, 78.05),
    ("paper-main", "gumbel"): (53.87, 74.58, 76.89),
    ("paper-main", "rho1"): (53.56, 75.16, 77.32),
    ("paper-main", "ngrpo"): (54.11, 76.82, 79.17),
    ("paper-main-7b", "base"): (65.80, 79.96, 81.23),
    ("paper-main-7b", "grpo"): (67.18, 80.87, 81.94),
    ("paper-main-7b", "ngrpo"): (66.64, 82.56, 84.20),
    ("paper-metric", "cosine"): (54.11, 76.82, 79.17),
}
MEASURES = ("mean@32", "best@16", "best@32")
GPQA = {"base": (32.23, 85.51, 90.79), "grpo": (32.24, 86.25, 91.95), "ngrpo": (33.68, 87.58, 92.87)}


def test_published_figures_are_those_whose_averages_are_published_too() -> None:
    for (name, arm), expected in AVERAGES.items():
        table = tree(name)["published"][arm]
        for measure, average in zip(MEASURES, expected, strict=True):
            mean = sum(table[benchmark][measure] for benchmark in ("aime25", "amc23", "math500")) / 3
            assert mean == pytest.approx(average, abs=0.011), (name, arm, measure)
    published = tree("paper-main")["published"]
    assert {
        arm: tuple(each["gpqa_diamond"].values()) for arm, each in published.items() if "gpqa_diamond" in each
    } == GPQA
    of_release = tree("authors-release-1.5b")["published"]
    assert of_release == {arm: published[arm] for arm in ("base", "grpo", "stht", "ngrpo")}
    ngrpo = tree("paper-ablations")["published"]["ngrpo"]
    assert ngrpo == published["ngrpo"]


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_are_of_arms_and_benchmarks_that_are_there(name: str) -> None:
    file = tree(name)
    benchmarks = set(next(iter(arms(name).values())).data.benchmarks)
    for arm, table in file.get("published", {}).items():
        assert arm in {"base", *file["arms"]}
        assert set(table) <= benchmarks
        assert all(tuple(values) == MEASURES for values in table.values())
