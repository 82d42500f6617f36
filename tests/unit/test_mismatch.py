"""Engine and trainer, token by token: the difference of their log-probabilities is logged, corrected and bounded."""

import math
import re
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from ngrpo.config.training import TrainingConfig
from ngrpo.errors import TrainingError
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from replay import replayed
from tiny import EOS, PAD, mixer_for, save_tiny_model

ROWS, MICRO, LONGEST = 16, 4, 24
TOLERANCE = 1e-4
"""Of the law of replay, in float32."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Lying(TransformersEngine):
    """Adds to the log-probabilities of every third step: one number if it is mixed, another if it is not."""

    def __init__(self, model, mixed: float = 0.0, unmixed: float = 0.0):
        super().__init__(model, [EOS], PAD, 64)
        self.lies = {True: mixed, False: unmixed}

    def generate(self, prompts, seeds, sampling, mixer=None):
        return [self.told(rollout) for rollout in super().generate(prompts, seeds, sampling, mixer)]

    def told(self, rollout):
        mixed = set(rollout.records.positions.tolist())
        values = [value + self.lies[place in mixed] * (place % 3 == 0) for place, value in enumerate(rollout.logprobs)]
        return replace(rollout, logprobs=values)


def trainer(directory, *, strategy="neighbor", engine=Lying, bound=None, correct=False, updates=1, **changes):
    settings = {
        "output_dir": str(directory / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": MICRO,
        "steps_per_generation": ROWS // MICRO,
        "gradient_accumulation_steps": ROWS // MICRO // updates,
        "num_generations": 4,
        "max_completion_length": LONGEST,
        "temperature": 0.7,
        "beta": 0.0,
        "loss_type": "grpo",
        "learning_rate": 1e-2,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return NGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory),
        reward_funcs=[lambda completions, **_: [float(len(one[0]["content"]) % 5) for one in completions]],
        args=GRPOConfig(**(settings | changes)),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": f"{row} ="}]} for row in range(8)]),
        processing_class=AutoTokenizer.from_pretrained(directory, padding_side="left"),
        make_engine=engine,
        current_mixer=lambda model: None if strategy == "token" else mixer_for(model, strategy, 0.4),
        correct_mismatch=correct,
        mismatch_bound=bound,
    )


def logged(learner) -> list[dict]:
    learner.train()
    return [entry for entry in learner.state.log_history if "mismatch/unmixed_mean" in entry]


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("neighbor", {}),
        ("neighbor", {"updates": 2}),
        pytest.param("gaussian", {"top_p": 0.8}, marks=pytest.mark.long),
        ("token", {}),
    ],
    ids=str,
)
def test_an_honest_engine_differs_by_rounding_alone(directory, strategy, changes):
    entries = logged(trainer(directory, strategy=strategy, bound=TOLERANCE, **changes))
    assert len(entries) == 2 // changes.get("updates", 1), "once a rollout batch"
    for entry in entries:
        kinds = {name.split("/")[1].split("_")[0] for name in entry if name.startswith("mismatch/")}
        assert kinds == ({"unmixed"} if strategy == "token" else {"mixed", "unmixed"})
        for kind in kinds:
            mean, late, most = (entry[f"mismatch/{kind}_{name}"] for name in ("mean", "p99", "max"))
            assert 0 < mean < late <= most < TOLERANCE


@pytest.mark.parametrize("updates", [1, pytest.param(2, marks=pytest.mark.long)])
def test_mixed_and_unmixed_steps_are_told_apart(directory, updates):
    def engine(model):
        return Lying(model, mixed=0.5, unmixed=-0.25)

    (entry, *_) = logged(trainer(directory, engine=engine, updates=updates))
    assert entry["mismatch/mixed_max"] == pytest.approx(0.5, abs=TOLERANCE)
    for name in ("p99", "max"):
        assert entry[f"mismatch/unmixed_{name}"] == pytest.approx(0.25, abs=TOLERANCE)
    assert 0.5 / 6 < entry["mismatch/mixed_mean"] < 0.5 / 1.5
    assert 0.25 / 6 < entry["mismatch/unmixed_mean"] < 0.25 / 1.5


@pytest.mark.parametrize(
    ("lies", "updates"), [({"unmixed": -3.0}, 1), ({"mixed": 3.0}, 2), ({"unmixed": math.nan}, 1)], ids=str
)
def test_an_engine_that_lies_stops_training_before_the_weights_change(directory, lies, updates):
    learner = trainer(directory, engine=lambda model: Lying(model, **lies), bound=0.2, updates=updates)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    with pytest.raises(TrainingError) as caught:
        learner.train()
    text, *lines = str(caught.value).splitlines()
    (kind,) = lies
    assert text.startswith("step 1: log-probabilities of engine and trainer differ by ")
    assert f"on average on {kind} steps, more than training.mismatch_bound=0.2" in text
    assert learner.state.global_step == 0
    assert all(torch.equal(*pair) for pair in zip(before, learner.model.parameters(), strict=True))

    assert 1 <= len(lines) <= 5
    shown = [
        re.fullmatch(r"  token (\d+): engine (.+) (\S+) \| trainer (.+) (\S+), the engine's (\S+)", line).groups()
        for line in lines
    ]
    row = next(row for row in range(ROWS) if said(learner, row) >= {one[:2] for one in shown})
    rollout, scores = learner._rollouts[row], replayed_row(learner, row)
    mixed = rollout.records.positions.tolist()
    assert any(int(place) % 3 == 0 and (int(place) in mixed) == (kind == "mixed") for place, *_ in shown)
    for place, _, engine, token, *trained in shown:
        at = scores[int(place)]
        assert token == word(learner, int(at.argmax()))
        numbers = [rollout.logprobs[int(place)], at.max().item(), at[rollout.token_ids[int(place)]].item()]
        assert [float(engine), *map(float, trained)] == pytest.approx(numbers, abs=0.006, nan_ok=True)


def said(learner, row: int) -> set[tuple[str, str]]:
    """What an error may say that the engine generated."""
    return {(str(place), word(learner, token)) for place, token in enumerate(learner._rollouts[row].token_ids)}


def word(learner, token: int) -> str:
    return repr(learner._tokenizer.decode([token]))


def replayed_row(learner, row: int) -> torch.Tensor:
    """Log-probabilities of every token at every place of a rollout of the last batch."""
    return replayed(learner.model, learner._prompts[row], learner._rollouts[row], learner._mixer, learner.temperature)


CAP = 3.0
HALF, TENTH = math.log(2), math.log(10)
"""The engine's probability of every third unmixed step is twice too large, or ten times too small."""


@pytest.mark.parametrize(
    ("lie", "mode", "expected", "updates"),
    [
        (HALF, "token_truncate", 0.5, 1),
        (-TENTH, "token_truncate", CAP, 2),
        (-TENTH, "token_mask", 0.0, 1),
    ],
)
def test_ratios_of_tokens_correct_unmixed_steps_alone(directory, lie, mode, expected, updates):
    batch = corrected(directory, lie, mode, updates)
    ratio = batch["importance_sampling_ratio"]
    inside, mixed = batch["completion_mask"].bool(), batch["mix_mask"]
    every_third = torch.arange(ratio.shape[1]) % 3 == 0
    assert (inside & mixed & every_third).any()
    lied = inside & ~mixed & every_third
    assert ratio[lied] == pytest.approx(expected, abs=1e-3)
    assert ratio[inside & ~lied] == pytest.approx(1.0, abs=1e-3)
    assert (ratio[inside & mixed] == 1).all()


@pytest.mark.parametrize(
    ("mode", "above"), [pytest.param("sequence_truncate", CAP, marks=pytest.mark.long), ("sequence_mask", 0.0)]
)
def test_ratios_of_sequences_leave_out_mixed_steps(directory, mode, above):
    lie = -HALF / 2
    batch = corrected(directory, lie, mode, 1)
    inside, mixed = batch["completion_mask"].bool(), batch["mix_mask"]
    lied = (inside & ~mixed & (torch.arange(inside.shape[1]) % 3 == 0)).sum(dim=1)
    expected = torch.exp(-lie * lied)
    assert expected.min() < CAP < expected.max()
    expected[expected > CAP] = above
    torch.testing.assert_close(batch["importance_sampling_ratio"][:, 0], expected, rtol=1e-3, atol=1e-3)


def corrected(directory, lie: float, mode: str, updates: int) -> dict:
    learner = trainer(
        directory,
        engine=lambda model: Lying(model, mixed=5.0, unmixed=lie),
        correct=True,
        updates=updates,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=CAP,
    )
    learner.model.train()
    rows = learner.train_dataset
    return learner._generate_and_score_completions([rows[row // 4] for row in range(ROWS)])


def test_the_correction_reaches_the_loss_of_a_lie_and_of_no_truth(directory):
    def losses(engine, **settings):
        learner = trainer(directory, engine=engine, max_steps=1, **settings)
        learner.train()
        return learner.state.log_history[0]["grad_norm"]

    mode = {"correct": True, "vllm_importance_sampling_mode": "token_truncate"}
    plain = losses(Lying)
    assert losses(Lying, **mode) == pytest.approx(plain, rel=1e-3)
    assert losses(lambda model: Lying(model, mixed=1.0), **mode) == pytest.approx(plain, rel=1e-3)
    assert abs(losses(lambda model: Lying(model, unmixed=1.0), **mode) / plain - 1) > 0.05


REQUIRED = {"steps": 2, "prompts_per_batch": 2, "micro_batch_size": 2, "save_steps": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mismatch_bound": -0.1}, "greater than 0"),
        ({"mismatch_bound": 0}, "greater than 0"),
        ({"mismatch_bound": math.nan}, "finite number"),
        ({"mismatch_bound": math.inf}, "finite number"),
        ({"mismatch_bound": True}, "mismatch_bound"),
        ({"mismatch_correction": "token_clip"}, "'off', 'token_truncate'"),
        ({"mismatch_correction": "token_mask", "mismatch_cap": 0.5}, "greater than or equal to 1"),
        ({"mismatch_cap": 2.0}, "has no effect with mismatch_correction='off'"),
        ({"mismatch_correction": "sequence_mask", "loss_type": "vespo"}, "'token_truncate' or 'token_mask'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        TrainingConfig.model_validate(REQUIRED | changes)


def test_settings_that_are_not_given_move_no_key():
    assert not {name for name in TrainingConfig.model_validate(REQUIRED).model_dump() if name.startswith("mismatch")}
