"""The experiments for a laptop: arms have the settings of the preset and differ only in what is compared."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from ngrpo.config import RunConfig, load_config, validate
from ngrpo.config.inheritance import merge
from ngrpo.sizing.stages import needs_of
from ngrpo.stages.declarations import STAGES

PIPELINES = Path(__file__).parents[2] / "pipelines"
NAMES = ["laptop", "laptop-full", "countdown"]


def experiment(name: str) -> dict[str, Any]:
    return tomllib.loads((PIPELINES / "experiments" / f"{name}.toml").read_text(encoding="utf-8"))


def arms(name: str) -> dict[str, RunConfig]:
    """Return the configuration of each arm, as a run of its own would have it."""
    tree = experiment(name)
    preset = load_config(PIPELINES / "presets" / f"{tree['preset']}.toml").model_dump(mode="json")
    shared = merge(preset, tree.get("settings", {}))
    return {arm: validate(RunConfig, merge(shared, settings)) for arm, settings in tree["arms"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_compared_is_fixed(name: str) -> None:
    tree, configs = experiment(name), arms(name)
    assert (tree["baseline"], tree["measure"], tree["equivalence"]) == ("grpo", "pass@16", 1.0)
    assert len(set(tree["seeds"])) == len(tree["seeds"]) == {"laptop": 5, "laptop-full": 10, "countdown": 5}[name]
    for config in configs.values():
        assert config.data.benchmarks[tree["benchmark"]].fold == "held_out"
        assert 16 in config.evaluation.pass_at


@pytest.mark.parametrize("name", NAMES)
def test_arms_share_all_before_training_and_differ_in_it(name: str) -> None:
    configs = list(arms(name).values())
    for config in configs:
        assert (config.data, config.model, config.warm_start, config.neighbors, config.evaluation) == (
            configs[0].data,
            configs[0].model,
            configs[0].warm_start,
            configs[0].neighbors,
            configs[0].evaluation,
        )
    trained = [(config.mixing, config.rollout, config.training) for config in configs]
    assert all(trained.index(each) == place for place, each in enumerate(trained)), "no two arms are the same"


@pytest.mark.parametrize("name", ["laptop", "countdown"])
def test_the_control_differs_from_ngrpo_in_the_size_of_the_candidate_set_alone(name: str) -> None:
    configs = arms(name)
    assert set(configs) == {"grpo", "k1", "neighbor"}
    control, ours = configs["k1"], configs["neighbor"]
    assert control.mixing == ours.mixing.model_copy(update={"k": 1})
    assert control.training == ours.training
    assert configs["grpo"].mixing == ours.mixing.model_copy(update={"strategy": "token"})


@pytest.mark.parametrize("name", NAMES)
def test_no_arm_needs_a_gpu(name: str) -> None:
    for config in arms(name).values():
        assert all(config.needs(stage).gpus == 0 for stage in STAGES)
        assert all(needs_of(config, stage) is not None for stage in STAGES)
