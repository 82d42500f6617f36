"""Sampling: the nucleus against transformers' own, and draws that depend on seed and position alone."""

import pytest
import torch
from transformers.generation import TopPLogitsWarper

from ngrpo.mixing.counter import TOKEN, uniform
from ngrpo.rollout.sampling import keep_nucleus, sample_tokens, token_logprobs


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 3 * torch.randn(16, 200)


@pytest.mark.parametrize("top_p", [0.1, 0.8, 0.95, 1e-6])
def test_the_nucleus_is_the_one_of_transformers(logits, top_p):
    expected = TopPLogitsWarper(top_p)(None, logits)
    assert torch.equal(keep_nucleus(logits, top_p), expected)
    assert torch.equal(keep_nucleus(logits, torch.full((16,), top_p)), expected)


def test_each_row_has_its_own_nucleus(logits):
    top_p = torch.linspace(0.1, 1.0, 16)
    kept = keep_nucleus(logits, top_p)
    for row in range(16):
        assert torch.equal(kept[row : row + 1], keep_nucleus(logits[row : row + 1], float(top_p[row])))
    assert torch.isfinite(kept[-1]).all(), "the whole distribution stays at 1"


def test_a_draw_depends_on_seed_and_position_alone(logits):
    seeds, positions = torch.arange(16), torch.arange(16) % 3
    drawn = sample_tokens(logits, seeds, positions)
    backwards = sample_tokens(logits.flip(0), seeds.flip(0), positions.flip(0)).flip(0)
    assert torch.equal(drawn, backwards)
    assert not torch.equal(drawn, sample_tokens(logits, seeds, positions + 1))
    assert not torch.equal(drawn, sample_tokens(logits, seeds + 1, positions))


def test_large_batches_are_worked_on_in_parts_and_nothing_else_comes():
    logits = torch.randn(13, 49_152, generator=torch.Generator().manual_seed(0)) * 3
    seeds, positions = torch.arange(13), torch.arange(13)
    tokens = sample_tokens(logits, seeds, positions)
    logprobs = token_logprobs(logits, tokens)
    for row in range(13):
        one = slice(row, row + 1)
        assert torch.equal(tokens[one], sample_tokens(logits[one], seeds[one], positions[one]))
        assert torch.equal(logprobs[one], token_logprobs(logits[one], tokens[one]))
    whole = logits.softmax(-1).double().cumsum(-1)
    drawn = uniform(seeds, positions, TOKEN)[:, None] * whole[:, -1:]
    assert torch.equal(tokens, torch.searchsorted(whole, drawn, right=True)[:, 0])
    assert torch.equal(logprobs, logits[range(13), tokens] - logits.logsumexp(1))


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.0, 0.2])
    drawn = sample_tokens(
        probabilities.log().expand(20_000, 4), torch.arange(20_000), torch.zeros(20_000, dtype=torch.long)
    )
    counts = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(counts, probabilities, atol=0.015, rtol=0)
    assert counts[2] == 0


def test_the_log_probability_is_that_of_the_log_softmax(logits):
    tokens = torch.arange(16)
    torch.testing.assert_close(token_logprobs(logits, tokens), logits.log_softmax(-1)[torch.arange(16), tokens])
