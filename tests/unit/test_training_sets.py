"""Several training sets: each with its share, in an order that depends only on seed and epoch."""

from collections import Counter

import pytest
from datasets import Dataset
from test_ngrpo_trainer import GROUP, arguments
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.data.problem import SET, WEIGHT
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.training_sets import TrainingSets, set_metrics
from tiny import EOS, PAD, save_tiny_model

SIZES, WEIGHTS = {"large": 90, "small": 10, "rare": 20}, {"large": 3.0, "small": 2.0, "rare": 1.0}
COLUMN = [name for name, size in SIZES.items() for _ in range(size)]
SETS = TrainingSets.of(COLUMN, [WEIGHTS[name] for name in COLUMN])


@pytest.mark.parametrize("batch", [6, 7, 32])
def test_every_batch_has_the_share_of_each_set(batch):
    order = [COLUMN[row] for epoch in range(3) for row in SETS.order(0, epoch)]
    for start in range(0, len(order) - batch, batch):
        counts = Counter(order[start : start + batch])
        for name, weight in WEIGHTS.items():
            assert abs(counts[name] - batch * weight / 6) < 2


def test_an_epoch_has_as_many_problems_as_there_are_and_the_share_of_each_set():
    order = SETS.order(0, 4)
    assert Counter(COLUMN[row] for row in order) == {"large": 60, "small": 40, "rare": 20}


def test_a_set_comes_round_as_a_whole_before_a_problem_is_repeated():
    drawn = [row for epoch in range(6) for row in SETS.order(1, epoch)]
    for name, rows in SETS.rows.items():
        of_set = [row for row in drawn if COLUMN[row] == name]
        rounds = [of_set[start : start + len(rows)] for start in range(0, len(of_set) - len(rows) + 1, len(rows))]
        assert len(rounds) > 1
        assert all(sorted(each) == rows for each in rounds)
        assert rounds[0] != rounds[1]


def test_the_order_depends_on_seed_and_epoch_alone():
    assert SETS.order(0, 2) == SETS.order(0, 2)
    assert SETS.order(0, 2) != SETS.order(0, 3)
    assert SETS.order(0, 2) != SETS.order(1, 2)


def test_each_set_is_measured_and_what_has_no_reward_does_not_count():
    nan = float("nan")
    metrics = set_metrics(["a", "a", "b", "c"], [[1.0, 0.0, nan, nan], [1.0, nan, 4.0, nan]], [1.0, 0.5])
    assert metrics == {
        "sets/a/share": 0.5,
        "sets/b/share": 0.25,
        "sets/c/share": 0.25,
        "sets/a/reward": 0.75,
        "sets/b/reward": 2.0,
    }


def test_the_trainer_draws_from_each_set_and_logs_it(tmp_path):
    columns = {SET: ["easy"] * 24 + ["hard"] * 8, WEIGHT: [1.0] * 24 + [1.0] * 8}
    prompts = [[{"role": "user", "content": f"{row} ="}] for row in range(32)]

    def reward(completions, **columns):
        return [float(name == "hard") for name in columns[SET]]

    directory = save_tiny_model(tmp_path / "model")
    trainer = NGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory),
        reward_funcs=[reward],
        args=arguments(tmp_path, max_completion_length=4),
        train_dataset=Dataset.from_dict({"prompt": prompts, **columns}),
        processing_class=AutoTokenizer.from_pretrained(directory, padding_side="left"),
        make_engine=lambda model: TransformersEngine(model, [EOS], PAD, 64),
        current_mixer=lambda model: None,
    )
    order = [*trainer._get_train_sampler()][::GROUP][:8]
    assert Counter(columns[SET][row] for row in order) == {"easy": 4, "hard": 4}
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "sets/easy/share" in entry)
    assert {name: value for name, value in logged.items() if name.startswith("sets/")} == {
        "sets/easy/share": 0.5,
        "sets/hard/share": 0.5,
        "sets/easy/reward": 0.0,
        "sets/hard/reward": 1.0,
    }
