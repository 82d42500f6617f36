"""Micro-batches sorted by length and without padding: the loss of a step equals that of stock TRL, which does neither."""

import random

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout.engine import Rollout
from ngrpo.rollout.seeds import request_seed
from ngrpo.training.micro_batches import Columns
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from tiny import EOS, SPECIAL, WORDS, mixer_for, save_tiny_model

ROWS, MICRO = 16, 2
LONGEST = 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Ragged:
    """An engine whose responses are of random tokens, the longest ten times as long as the shortest."""

    def generate(self, prompts, seeds, sampling, mixer=None):
        return [self.respond(random.Random(seed), seed, mixer) for seed in seeds]

    def respond(self, draw, seed, mixer) -> Rollout:
        length = min(LONGEST, round(4 * 10 ** draw.random()))
        tokens = [draw.randrange(len(SPECIAL), len(SPECIAL) + len(WORDS)) for _ in range(length - 1)] + [EOS]
        mixed = torch.tensor([place for place in range(length - 1) if mixer and draw.random() < mixer.rate]).long()
        records = RolloutRecords(mixed, torch.tensor([0.6, 0.3, 0.1]).repeat(len(mixed), 1), seed, 0)
        return Rollout(tokens, [-draw.random() for _ in tokens], "stop" if length < LONGEST else "length", records)

    def load_weights(self, weights):
        for _ in weights:
            pass

    def sleep(self):
        pass

    def close(self):
        pass


class Remembering:
    """Keeps the rows of every micro-batch: prompt and completion, without padding."""

    def _compute_loss(self, model, inputs):
        tokens, inside = (
            torch.cat([inputs[f"prompt_{of}"], inputs[f"completion_{of}"]], dim=1) for of in ("ids", "mask")
        )
        rows = [row[mask.bool()].tolist() for row, mask in zip(tokens, inside, strict=True)]
        self.__dict__.setdefault("seen", []).append(rows)
        return super()._compute_loss(model, inputs)


class Ours(Remembering, NGRPOTrainer):
    pass


class Stock(Remembering, GRPOTrainer):
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        seeds = [request_seed(self.args.seed, self.state.global_step, 0, row) for row in range(len(prompt_ids))]
        rollouts = Ragged().generate(prompt_ids, seeds, None)
        return [rollout.token_ids for rollout in rollouts], [rollout.logprobs for rollout in rollouts]


def length_reward(completions, **_) -> list[float]:
    return [float(len(completion[0]["content"]) % 5) for completion in completions]


def train(kind, directory, *, rate: float = 0.0, **changes):
    """Make two optimizer steps on one rollout batch."""
    micro = changes.get("per_device_train_batch_size", MICRO)
    settings = {
        "output_dir": str(directory / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": micro,
        "steps_per_generation": ROWS // micro,
        "gradient_accumulation_steps": ROWS // micro // 2,
        "num_generations": 4,
        "max_completion_length": LONGEST,
        "shuffle_dataset": False,  # our sampler has an order of its own
        "beta": 0.05,
        "loss_type": "grpo",
        "optim": "sgd",  # Adam divides by the size of a gradient, and so makes much of the rounding of one near zero
        "learning_rate": 0.1,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    own = {}
    if issubclass(kind, Ours):
        own = {"make_engine": lambda _: Ragged(), "current_mixer": lambda model: mixer_for(model, "neighbor", rate)}
    learner = kind(
        model=AutoModelForCausalLM.from_pretrained(directory),
        reward_funcs=[length_reward],
        args=GRPOConfig(**(settings | changes)),
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": "1 + 2 =" + " + 3" * row}]} for row in range(6)]
        ),
        processing_class=AutoTokenizer.from_pretrained(directory, padding_side="left"),
        **own,
    )
    learner.train()
    return learner


def steps_of(learner) -> list[list[list[list[int]]]]:
    """Return the micro-batches of each optimizer step."""
    window = learner.args.gradient_accumulation_steps
    return [learner.seen[start : start + window] for start in range(0, len(learner.seen), window)]


def flat(micro_batches) -> list[list[int]]:
    return [row for rows in micro_batches for row in rows]


LOSSES = [
    {"loss_type": "grpo"},
    pytest.param({"loss_type": "dapo"}, marks=pytest.mark.long),
    {"loss_type": "bnpo", "per_device_train_batch_size": 1},
    pytest.param({"loss_type": "dr_grpo"}, marks=pytest.mark.long),
    pytest.param({"loss_type": "sapo"}, marks=pytest.mark.long),
    pytest.param({"loss_type": "vespo"}, marks=pytest.mark.long),
    pytest.param({"loss_type": "cispo", "epsilon_high": 5.0}, marks=pytest.mark.long),
    pytest.param({"loss_type": "luspo", "importance_sampling_level": "sequence"}, marks=pytest.mark.long),
]
BY_MICRO_BATCH = [
    {"loss_type": "bnpo"},
    pytest.param({"entropy_coef": 0.1}, marks=pytest.mark.long),
    pytest.param({"top_entropy_quantile": 0.5}, marks=pytest.mark.long),
]
"""Objectives that divide by something of a micro-batch, or rank its tokens: its rows are its own."""


@pytest.mark.parametrize("changes", LOSSES, ids=str)
def test_a_step_on_sorted_rows_is_that_of_stock_trl(directory, changes):
    for micro_batches in steps_of(require_stock(directory, changes)):
        lengths = [len(row) for row in flat(micro_batches)]
        assert lengths == sorted(lengths, reverse=True) != sorted(lengths)


@pytest.mark.parametrize("changes", BY_MICRO_BATCH, ids=str)
def test_rows_stay_where_an_objective_depends_on_the_micro_batch(directory, changes):
    ours = require_stock(directory, changes)
    assert ours.seen == ours.peer.seen


def require_stock(directory, changes) -> Ours:
    """Require that an optimizer step is that of stock TRL, on the same rows; return our trainer."""
    ours, stock = train(Ours, directory, **changes), train(Stock, directory, **changes)
    ours.peer = stock
    for name in ("loss", "grad_norm"):
        found, expected = (
            [entry[name] for entry in learner.state.log_history if name in entry] for learner in (ours, stock)
        )
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert min(entry["grad_norm"] for entry in stock.state.log_history if "grad_norm" in entry) > 1e-2
    for mine, theirs in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(steps_of(ours), steps_of(stock), strict=True):
        assert sorted(flat(mine)) == sorted(flat(theirs)), "the rows of an optimizer step"
    return ours


@pytest.mark.parametrize("micro", [1, 4])
def test_no_pass_has_a_column_of_padding_alone(directory, monkeypatch, micro):
    masks, attended = [], []

    class Watched(Ours):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            for model in (self.model, self.ref_model):
                model.register_forward_pre_hook(
                    lambda _, __, named: masks.append(named["attention_mask"]), with_kwargs=True
                )

    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*tensors, attn_mask=None, is_causal=False, **named):
        attended.append((attn_mask is None, is_causal))
        return attention(*tensors, attn_mask=attn_mask, is_causal=is_causal, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    learner = train(Watched, directory, rate=0.3, per_device_train_batch_size=micro)
    passes = 3 * ROWS // micro  # old policy, reference, policy
    assert len(masks) == passes
    assert all(mask.any(dim=0).all() for mask in masks)
    padded = 3 * ROWS * max(mask.shape[1] for mask in masks)
    computed = sum(mask.numel() for mask in masks)
    assert computed < 0.7 * padded
    if micro == 1:
        assert computed == 3 * sum(map(len, flat(learner.seen)))
        assert set(attended) == {(True, True)}, "without padding, attention takes its fast path"


def test_rows_that_are_all_left_out_of_the_loss_keep_a_column():
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
    assert Columns.of(mask, 3) == Columns(start=0, end=4, kept=1)


@pytest.mark.parametrize(
    ("multiple", "expected"),
    [(1, Columns(2, 7, 3)), (2, Columns(2, 8, 4)), (4, Columns(0, 8, 4)), (8, Columns(0, 12, 8))],
)
def test_padding_is_left_out_in_multiples(multiple, expected):
    mask = torch.zeros(2, 12, dtype=torch.long)
    mask[0, 2:5] = mask[1, 3:7] = 1
    assert Columns.of(mask, 8, multiple) == expected
