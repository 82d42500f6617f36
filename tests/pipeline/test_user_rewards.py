"""The training stage with rewards of the user's: what it logs and keeps, that it resumes, and that several processes reward as one does."""

import json
import shutil
from pathlib import Path

import pytest
from small_training import CONFIG, INPUTS, start, weights, write_inputs
from test_data_parallel import TOLERANCE, train
from test_training_stage import STAGE

from ngrpo.config import NGRPOTrainingConfig, validate
from ngrpo.config.located import locate

pytestmark = pytest.mark.pipeline

REWARDS = """
import asyncio
from counting import words

def short(completion_ids, trainer_state, log_metric, scale, **kwargs):
    log_metric("seen/steps", trainer_state.global_step)
    return [-scale * len(ids) for ids in completion_ids]

async def even(completions, answer, **kwargs):
    await asyncio.sleep(0)
    # Odd sums are another task; of some batches all are.
    return [words(turns) % 7 / 7 if int(gold) % 2 == 0 else None for turns, gold in zip(completions, answer)]

def never(completions, **kwargs):
    completions.clear()
    return [None] * len(kwargs["id"])

def failing(prompts, **kwargs):
    return [1.0 / (gold != "5") for gold in kwargs["answer"]]
"""
TABLE = {
    "short": {"function": "rewards.py:short", "weight": 2.0, "options": {"scale": 0.01}},
    "even": {"function": "rewards.py:even"},
    "never": {"function": "rewards.py:never"},
    "overlong": {"weight": 0.5},
}
TRAINING = {"steps": 4, "save_steps": 2, "prompts_per_batch": 4, "updates_per_batch": 1, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stage")
    write_inputs(root)
    (root / "rewards.py").write_text(REWARDS)
    (root / "counting.py").write_text("def words(turns): return len(turns[0]['content'])")
    return root


def settings(inputs: Path, **rewards) -> NGRPOTrainingConfig:
    training = CONFIG["training"] | TRAINING | {"rewards": rewards}
    return validate(NGRPOTrainingConfig, locate(CONFIG | {"training": training}, inputs))


def directory(inputs: Path, root: Path, **rewards) -> Path:
    root.mkdir()
    for name in INPUTS:
        (root / name).symlink_to(inputs / name)
    (root / "config.json").write_text(settings(inputs, **rewards).model_dump_json())
    return root


def history(artifact: Path) -> list[dict]:
    return json.loads((artifact / "log_history.json").read_text())


def test_rewards_are_logged_kept_and_resumed_to_the_same_bytes(inputs, tmp_path):
    whole = directory(inputs, tmp_path / "whole", **TABLE)
    assert start(STAGE, whole).wait() == 0, (whole / "errors.log").read_text()
    steps = history(whole / "output")
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for entry in steps:
        mean = {name: entry[f"rewards/{name}/mean"] for name in TABLE}
        assert mean["never"] is None
        assert mean["short"] == pytest.approx(-0.01 * entry["completions/mean_length"], rel=1e-5)
        assert -1 <= mean["overlong"] <= 0
        assert entry["seen/steps"] == entry["step"] - 1
    assert any(entry["rewards/even/mean"] is not None for entry in steps)
    code = {path.relative_to(whole / "output/code").as_posix() for path in (whole / "output/code").rglob("*.py")}
    assert code == {f"{name}/{file}.py" for name in ("short", "even", "never") for file in ("rewards", "counting")}
    assert (whole / "output/code/short/rewards.py").read_text() == REWARDS
    samples = json.loads((whole / "output" / "rollout_samples.json").read_text())
    assert all(isinstance(sample["reward"], float) for sample in samples)

    resumed = directory(inputs, tmp_path / "resumed", **TABLE)
    checkpoints = resumed / "work" / "checkpoints"
    shutil.copytree(whole / "work" / "checkpoints" / "checkpoint-2", checkpoints / "checkpoint-2")
    assert start(STAGE, resumed).wait() == 0
    assert weights(resumed / "output") == weights(whole / "output") != weights(whole / "warm_start")
    names = ("reward", "rewards/even/mean", "rewards/short/std", "seen/steps")
    assert [[entry.get(name) for name in names] for entry in history(resumed / "output")] == [
        [entry.get(name) for name in names] for entry in steps
    ]


def test_a_reward_that_raises_is_one_clear_error(inputs, tmp_path):
    root = directory(inputs, tmp_path / "failing", failing={"function": "rewards.py:failing"})
    assert start(STAGE, root).wait() == 1
    last = (root / "errors.log").read_text().strip().splitlines()[-1]
    assert last.startswith("ngrpo.errors.UserCodeError: training.rewards.failing: sample '")
    assert "rewards.py:failing raised rewards.py, line 19: ZeroDivisionError" in last


@pytest.mark.long
def test_two_processes_reward_as_one_does(inputs, tmp_path):
    (inputs / "config.json").write_text(settings(inputs, **TABLE).model_dump_json())
    alone = history(train(inputs, tmp_path / "alone", processes=1) / "artifact")
    together = history(train(inputs, tmp_path / "together", processes=2) / "artifact")
    for name in ("reward", "reward_std", "loss", *(f"rewards/{reward}/mean" for reward in TABLE), "seen/steps"):
        expected, found = ([entry[name] for entry in one] for one in (alone, together))
        assert [one is None for one in found] == [one is None for one in expected], name
        numbers = [[one for one in values if one is not None] for values in (found, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=TOLERANCE, abs=1e-6), name
