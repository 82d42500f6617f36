"""The warning of a slow engine, before a run begins."""

from pathlib import Path

import pytest

from ngrpo.checking.decoding_time import check_decoding_time
from ngrpo.checking.examination import examine_quickly, require_possible
from ngrpo.config import load_config
from ngrpo_kfp.pipelines.planning.nodes import Plan
from ngrpo_kfp.pipelines.planning.summary import plan_table

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
BOTH = ("rollout.engine=transformers", "evaluation.engine=transformers")


def warnings(preset: str, *settings: str) -> list[str]:
    return [finding.line for finding in check_decoding_time(load_config(PRESETS / f"{preset}.toml", settings))]


def test_hours_of_the_transformers_engine_on_gpus():
    rollout, evaluation = warnings("paper-1.5b", *BOTH)
    # 630 batches of 64 x 4 sequences on 8 GPUs: one batch a GPU, of 8192 steps, at 50 a second.
    assert rollout == (
        "rollout.engine='transformers' on GPUs: ngrpo_training would generate rollouts for 28.7 hours or more (estimated from 50 "
        "steps per second, which transformers reaches with a 0.5B model on an A100); set rollout.engine to 'vllm'"
    )
    # 3200 samples on 8 GPUs are two batches of 256 a GPU.
    assert "for 0.1 hours or more for each model and 100 problems" in evaluation
    assert evaluation.endswith("; set evaluation.engine to 'vllm'")


@pytest.mark.parametrize(
    ("settings", "hours"),
    [
        (["resources.ngrpo_training.gpus=1"], "28.7"),
        (["resources.ngrpo_training.gpus=1", "rollout.batch_size=64"], "114.7"),
        (["rollout.max_tokens=16384"], "57.3"),
        (["training.updates_per_batch=4", "training.steps=2520", "training.save_steps=120"], "28.7"),
        (["cluster.nodes=2", "rollout.batch_size=8"], "57.3"),
    ],
)
def test_the_hours_follow_from_the_settings(settings, hours):
    (line,) = warnings("paper-1.5b", BOTH[0], *settings)
    assert f" {hours} hours or more " in line


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("paper-1.5b", []),
        ("paper-7b", []),
        ("authors-release-1.5b", []),
        ("authors-release-7b", []),
        ("tiny", []),
        ("smollm2", ["evaluation.max_tokens=4096"]),
        ("paper-1.5b", [*BOTH, "rollout.max_tokens=512", "evaluation.max_tokens=512"]),
    ],
)
def test_no_warning_where_nothing_is_slow(preset, settings):
    assert warnings(preset, *settings) == []


def test_who_says_it_and_that_it_refuses_nothing():
    unknown = [f"resources.{stage}.gpu_memory_gib=0" for stage in ("ngrpo_training", "benchmark_evaluation")]
    config = load_config(PRESETS / "paper-1.5b.toml", [*BOTH, *unknown])
    found = [finding for finding in examine_quickly(config).findings if finding.level == "warning"]
    assert [finding.subject for finding in found] == ["rollout.engine", "evaluation.engine"]
    require_possible(config)
    caption = plan_table(Plan({}), config).caption  # of `plan`, `run` and `submit`
    assert [line[:24] for line in caption.splitlines()] == ["warning: rollout.engine=", "warning: evaluation.engi"]
    assert plan_table(Plan({}), load_config(PRESETS / "paper-1.5b.toml")).caption is None
