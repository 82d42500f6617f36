"""The replay law: one teacher-forced forward over the recorded inputs gives each rollout's log-probabilities."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.transformers_engine import TransformersEngine
from replay import replay_error
from tiny import EOS, MARKER, PAD, mixer_for, save_tiny_model

TEMPERATURE = 0.7
PROMPTS = [[2, 5, 9, 3], [2, 11, 3], [2, 5, 44, 17, 44, 20, 3]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("model")))


def engine(model, batch_size: int = 64) -> TransformersEngine:
    return TransformersEngine(model, [EOS], PAD, batch_size)


def prompts(count: int) -> list[list[int]]:
    return [PROMPTS[row % len(PROMPTS)] for row in range(count)]


@pytest.mark.parametrize("strategy", ["neighbor", "gaussian", "token"])
def test_rollouts_replay(model, strategy):
    mixer = None if strategy == "token" else mixer_for(model, strategy, 0.3)
    asked = prompts(48)
    rollouts = engine(model).generate(asked, range(48), Sampling(40, TEMPERATURE), mixer)
    assert replay_error(model, asked, rollouts, mixer, TEMPERATURE) <= 1e-4
    if mixer is not None:
        assert sum(len(rollout.records.positions) for rollout in rollouts) > 100
        assert replay_error(model, asked, rollouts, None, TEMPERATURE) > 1.0, "replay must depend on the records"


@pytest.mark.parametrize("strategy", ["neighbor", "gaussian"])
def test_a_rollout_does_not_depend_on_its_batch(model, strategy):
    mixer, sampling = mixer_for(model, strategy, 0.3), Sampling(40, TEMPERATURE)
    together = engine(model).generate(prompts(24), range(24), sampling, mixer)
    split = engine(model, batch_size=5).generate(prompts(24), range(24), sampling, mixer)
    assert len({len(rollout.token_ids) for rollout in together}) > 3, "rows must finish at different steps"
    for first, second in zip(together, split, strict=True):
        assert first.token_ids == second.token_ids
        assert first.records.positions.tolist() == second.records.positions.tolist()
        torch.testing.assert_close(first.records.weights, second.records.weights, atol=1e-4, rtol=0)


def test_mixed_steps_emit_the_anchor_and_stop_at_the_marker(model):
    mixer, sampling = mixer_for(model, "neighbor", 1.0, marker="stop"), Sampling(40, TEMPERATURE)
    rollouts = engine(model).generate(prompts(64), range(64), sampling, mixer)
    passed = [rollout for rollout in rollouts if MARKER in rollout.token_ids[:-1]]
    assert passed, "some rollout must pass the marker"
    for rollout in passed:
        assert (rollout.records.positions <= rollout.token_ids.index(MARKER)).all()
    for rollout in rollouts:
        anchors = torch.tensor(rollout.token_ids)[rollout.records.positions]
        assert mixer.eligible[anchors].all()
        # The anchor is the most likely token, so its weight leads its neighbors'.
        assert (rollout.records.weights[:, :1] >= rollout.records.weights).all()


def test_sampling_follows_the_distribution(model):
    """First tokens over many seeds against the model's own probabilities: chi-square over the likely tokens."""
    count = 4000
    rollouts = engine(model, 1000).generate([PROMPTS[0]] * count, range(count), Sampling(1, TEMPERATURE))
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / TEMPERATURE).softmax(-1)
    observed = torch.bincount(
        torch.tensor([rollout.token_ids[0] for rollout in rollouts]), minlength=len(probabilities)
    )
    likely = probabilities * count > 10
    expected = probabilities[likely] * count
    statistic = ((observed[likely] - expected) ** 2 / expected).sum().item()
    degrees = int(likely.sum())
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_the_nucleus_leaves_out_the_tail(model):
    rollouts = engine(model, 500).generate([PROMPTS[0]] * 500, range(500), Sampling(1, TEMPERATURE, top_p=0.5))
    with torch.no_grad():
        probabilities = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / TEMPERATURE).softmax(-1)
    ordered = probabilities.sort(descending=True)
    nucleus = ordered.indices[: int((ordered.values.cumsum(0) < 0.5).sum()) + 1].tolist()
    assert {rollout.token_ids[0] for rollout in rollouts} <= set(nucleus)
    assert len(nucleus) < len(probabilities)


def test_log_probabilities_are_those_before_the_nucleus(model):
    rollouts = engine(model).generate(prompts(6), range(6), Sampling(20, TEMPERATURE, top_p=0.5))
    assert replay_error(model, prompts(6), rollouts, None, TEMPERATURE) <= 1e-4


def test_ends_and_training_mode(model):
    model.train()
    rollouts = engine(model).generate(prompts(48), range(48), Sampling(40, TEMPERATURE))
    assert model.training, "the engine must leave the model as it found it"
    model.eval()
    for rollout in rollouts:
        assert (rollout.finish_reason == "stop") == (rollout.token_ids[-1] == EOS)
        assert EOS not in rollout.token_ids[:-1]
        if rollout.finish_reason == "length":
            assert len(rollout.token_ids) == 40
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}


def test_new_weights_are_used(model, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path, seed=5))
    generator = engine(other)
    before = generator.generate(prompts(8), range(8), Sampling(20, TEMPERATURE))
    generator.load_weights(model.named_parameters())
    after = generator.generate(prompts(8), range(8), Sampling(20, TEMPERATURE))
    expected = engine(model).generate(prompts(8), range(8), Sampling(20, TEMPERATURE))
    assert [rollout.token_ids for rollout in after] == [rollout.token_ids for rollout in expected]
    assert [rollout.token_ids for rollout in before] != [rollout.token_ids for rollout in after]
