"""The strategies beside the paper's: each against an independent reference, replayed, and with a gradient for the embedding matrix."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from test_mixing import VOCABULARY, WIDTH, decided, neighbors
from test_presets import PRESETS
from transformers import AutoModelForCausalLM

from ngrpo.checking.exploration import check_exploration
from ngrpo.config import load_config
from ngrpo.config.mixing import MixingConfig
from ngrpo.errors import ConfigError
from ngrpo.mixing.counter import TOKEN, gumbel, uniform
from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.neighbor_mixing import add_noise, mixing_weights, release_weights
from ngrpo.mixing.records import InputMixture
from ngrpo.mixing.strategies import Gaussian, Gumbel, Neighbor, Soft
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_mixer import build_mixer
from ngrpo.rollout.configured_strategy import load_strategy, source_of, strategy_source
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.fused import serves
from ngrpo.rollout.strategy_trial import try_strategy
from ngrpo.rollout.transformers_engine import TransformersEngine
from replay import replay_error
from tiny import EOS, FURTHER, PAD, STRATEGIES, eligible, mixer_for, save_tiny_model

TINY = PRESETS / "tiny.toml"
TEMPERATURE = 0.7
PROMPTS = [[2, 5, 9, 3], [2, 11, 3], [2, 5, 44, 17, 44, 20, 3]] * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("model")))


def engine(model, batch_size: int = 64) -> TransformersEngine:
    return TransformersEngine(model, [EOS], PAD, batch_size)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def some_logits(rows: int) -> torch.Tensor:
    return 2 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(4))


# --- neighbor, as the release has it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "printed"), [(3, [0.576, 0.212, 0.212]), (2, [0.731, 0.269])])
def test_a_softmax_of_a_softmax_mixes_where_equation_9_does_not(k, printed):
    vocabulary = 1000
    logits = torch.zeros(1, vocabulary)
    logits[0, 7] = math.log(0.999 / 0.001 * (vocabulary - 1))  # the other tokens share 0.001
    assert logits.softmax(-1)[0, 7].item() == pytest.approx(0.999, abs=1e-5)
    candidates = torch.arange(7, 7 + k)[None]
    assert [round(value, 3) for value in release_weights(logits, candidates)[0].tolist()] == printed
    assert [round(value, 3) for value in mixing_weights(logits, candidates)[0].tolist()] == [1.0] + [0.0] * (k - 1)


def test_the_weights_of_the_release_are_the_softmax_of_probabilities():
    logits = some_logits(6)
    step = decided(Neighbor(3, weights="release"), logits)
    for row in range(len(logits)):
        probabilities = softmax(logits[row].double().numpy())
        candidates = step.candidates[row].tolist()
        anchor = int(probabilities.argmax())
        assert candidates == [anchor, *neighbors()[anchor, :2].tolist()]
        np.testing.assert_allclose(step.weights[row].numpy(), softmax(probabilities[candidates]), atol=1e-6)


@pytest.mark.parametrize("strategy", [Neighbor(3, label="sampled"), Soft(3, label="sampled")])
def test_the_sampled_token_is_emitted_and_the_anchor_leads_the_mixture(strategy):
    logits, sampled = some_logits(4), torch.tensor([1, 2, 3, 4])
    step = decided(strategy, logits, sampled=sampled)
    assert step.mixed.all()
    assert torch.equal(step.tokens, sampled)
    assert torch.equal(step.candidates[:, 0], logits.argmax(-1))
    assert not torch.equal(step.candidates[:, 0], sampled)
    for name, value in dataclasses.asdict(decided(type(strategy)(3), logits, sampled=sampled)).items():
        if name in ("candidates", "weights"):
            assert torch.equal(getattr(step, name), value), "the label changes nothing of the mixture"


@pytest.mark.parametrize("strategy", [Neighbor(3, label="sampled"), Soft(3, label="sampled")])
def test_neither_label_nor_anchor_may_be_a_token_that_is_not_mixed(strategy):
    may = torch.ones(VOCABULARY, dtype=torch.bool)
    may[5] = False
    logits = torch.zeros(3, VOCABULARY)
    logits[0, 5] = logits[1, 8] = logits[2, 8] = 9.0
    step = decided(strategy, logits, sampled=torch.tensor([3, 5, 3]), eligible=may)
    assert step.mixed.tolist() == [False, False, True]
    assert step.tokens.tolist() == [3, 5, 3]


# --- k = 1, the control ---------------------------------------------------------------------------------------------------


def test_one_candidate_is_a_greedy_step_with_the_plain_embedding(model):
    """At every step: what an argmax loop without a cache and without mixing writes. Now and then: scored by the model as it is."""
    mixer = mixer_for(model, Neighbor(1), 1.0)
    rollouts = engine(model).generate(PROMPTS[:3], range(3), Sampling(12, TEMPERATURE), mixer)
    for prompt, rollout in zip(PROMPTS, rollouts, strict=False):
        ids = list(prompt)
        for position, token in enumerate(rollout.token_ids):
            with torch.no_grad():
                best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            mixed = position in rollout.records.positions.tolist()
            assert mixed == bool(mixer.eligible[best])
            assert token == best or not mixed
            ids.append(token)
    assert sum(len(rollout.records.positions) for rollout in rollouts) > 10
    gated = engine(model).generate(
        PROMPTS[:12], range(12), Sampling(30, TEMPERATURE), mixer_for(model, Neighbor(1), 0.5)
    )
    assert sum(len(rollout.records.positions) for rollout in gated) > 50
    assert replay_error(model, PROMPTS[:12], gated, None, TEMPERATURE) <= 1e-4, "its inputs are those of its tokens"


# --- soft -----------------------------------------------------------------------------------------------------------------


def test_soft_thinking_is_the_renormalised_expectation_over_the_most_likely_tokens():
    logits = some_logits(6)
    step = decided(Soft(4), logits)
    embedding = torch.randn(VOCABULARY, WIDTH)
    mixed = Soft(4).embed(embedding[step.candidates], step.weights, torch.arange(6), torch.zeros(6).long())
    for row in range(len(logits)):
        probabilities = softmax(logits[row].double().numpy())
        top = np.argsort(-probabilities)[:4]
        assert step.tokens[row] == top[0]
        weights = probabilities[top] / probabilities[top].sum()
        np.testing.assert_allclose(step.weights[row].numpy(), weights, atol=1e-6)
        np.testing.assert_allclose(mixed[row].numpy(), weights @ embedding.double().numpy()[top], atol=1e-5)


# --- gumbel ---------------------------------------------------------------------------------------------------------------


def test_gumbel_noise_has_its_distribution():
    values = gumbel(torch.arange(200), torch.full((200,), 5), 1000).double().flatten().sort().values
    assert values.isfinite().all()
    expected = torch.exp(-torch.exp(-values))  # the distribution function, exp(-exp(-x))
    empirical = (torch.arange(len(values)) + 0.5) / len(values)
    assert (expected - empirical).abs().max() < 1.63 / len(values) ** 0.5, "Kolmogorov and Smirnov, at one percent"


def test_gumbel_noise_is_a_function_of_seed_position_and_token():
    seeds, positions = torch.tensor([3, 2**40 + 3, 3]), torch.tensor([1, 1, 2])
    noise = gumbel(seeds, positions, 300)
    for row in range(3):
        assert torch.equal(gumbel(seeds[row : row + 1], positions[row : row + 1], 300)[0], noise[row])
    assert torch.equal(gumbel(seeds, positions, 200), noise[:, :200]), "it does not depend on how many tokens there are"
    assert torch.equal(
        gumbel(torch.arange(150), torch.full((150,), 9), 40)[149:], gumbel(*torch.tensor([[149], [9]]), 40)
    )
    correlation = torch.corrcoef(
        gumbel(torch.tensor([3, 3, 3, 4, 4, 2**40 + 3]), torch.tensor([0, 1, 2, 1, 2, 1]), 20_000)
    )
    assert (correlation - torch.eye(6)).abs().max() < 0.03
    drawn = uniform(torch.arange(20_000), torch.tensor(0), TOKEN)
    of_first = gumbel(torch.arange(20_000), torch.zeros(20_000).long(), 1)[:, 0].double()
    assert torch.corrcoef(torch.stack([drawn, of_first]))[0, 1].abs() < 0.03, "whatever token would be sampled"


@pytest.mark.parametrize(("temperature", "noisy"), [(0.5, True), (1.5, True), (0.5, False)])
def test_gumbel_soft_thinking_is_that_of_its_equation(temperature, noisy):
    logits = some_logits(6)
    step = decided(Gumbel(4, temperature, noisy), logits)
    noise = gumbel(torch.arange(6), torch.zeros(6).long(), VOCABULARY).double().numpy()
    for row in range(len(logits)):
        plain = np.log(softmax(logits[row].double().numpy()))
        scores = plain + noise[row]
        top = np.argsort(-scores)[:4]
        assert step.candidates[row].tolist() == top.tolist()
        assert step.tokens[row] == top[0]
        weights = softmax(scores[top] / temperature) if noisy else softmax(plain[top])
        np.testing.assert_allclose(step.weights[row].numpy(), weights, atol=1e-5)


def test_the_token_that_gumbel_emits_is_a_sample():
    count, logits = 20_000, some_logits(1)
    step = Gumbel(2)
    noisy = logits + gumbel(torch.arange(count), torch.zeros(count).long(), VOCABULARY)
    assert torch.equal(decided(step, logits.expand(50, -1)).tokens, noisy.argmax(-1)[:50])
    observed = torch.bincount(noisy.argmax(-1), minlength=VOCABULARY)
    expected = logits[0].double().softmax(-1) * count
    likely = expected > 10
    statistic = ((observed - expected)[likely] ** 2 / expected[likely]).sum().item()
    degrees = int(likely.sum())
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


# --- gaussian, as in Soft Tokens, Hard Truths -------------------------------------------------------------------------------


def test_noise_of_a_third_at_every_step_is_a_setting_and_replays(model):
    config = MixingConfig(strategy="gaussian", rate=1.0, noise_std=0.33, end_marker=None)
    matrix = model.get_input_embeddings().weight.detach()
    mixer = build_mixer(config, NeighborIndex.build(matrix, eligible(), candidates=2, block_rows=64), None)
    rollouts = engine(model).generate(PROMPTS, range(24), Sampling(20, TEMPERATURE), mixer)
    assert replay_error(model, PROMPTS, rollouts, mixer, TEMPERATURE) <= 1e-4
    plain = engine(model).generate(PROMPTS, range(24), Sampling(1, TEMPERATURE))
    assert [one.token_ids[0] for one in rollouts] == [one.token_ids[0] for one in plain], "tokens are sampled"
    for rollout in rollouts:
        may = mixer.eligible[torch.tensor(rollout.token_ids)]
        assert rollout.records.positions.tolist() == may.nonzero()[:, 0].tolist(), "every step"
    vectors = matrix[torch.tensor(rollouts[0].token_ids * 40)]
    seeds, positions = torch.arange(len(vectors)), torch.arange(len(vectors))
    noise = mixer.strategy.embed(vectors[:, None], torch.ones(len(vectors), 1), seeds, positions) - vectors
    ratio = (noise.square().mean(-1) / vectors.square().mean(-1)).mean().sqrt().item()
    assert ratio == pytest.approx(0.33, abs=0.01)


# --- what all of them owe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FURTHER)
def test_rollouts_replay_and_a_damaged_record_is_noticed(model, name):
    mixer = mixer_for(model, name, 0.3)
    rollouts = engine(model).generate(PROMPTS[:12], range(12), Sampling(20, TEMPERATURE), mixer)
    assert sum(len(rollout.records.positions) for rollout in rollouts) > 30
    assert replay_error(model, PROMPTS[:12], rollouts, mixer, TEMPERATURE) <= 1e-4
    damages = {
        "no record": dict(positions=torch.tensor([], dtype=torch.long)),
        "weights": lambda record: dict(weights=record.weights.roll(1, dims=1)),
        "candidates": lambda record: dict(candidates=(record.candidates + 1) % len(mixer.eligible)),
        "derived": lambda record: dict(candidates=None),
    }
    for what, change in damages.items():
        assert damaged_error(model, rollouts[:4], mixer, change) > 0.1, what


def damaged_error(model, rollouts: list[Rollout], mixer, change) -> float:
    records = [
        dataclasses.replace(one.records, **(change(one.records) if callable(change) else change)) for one in rollouts
    ]
    damaged = [dataclasses.replace(one, records=record) for one, record in zip(rollouts, records, strict=True)]
    return replay_error(model, PROMPTS[: len(damaged)], damaged, mixer, TEMPERATURE)


@pytest.mark.parametrize("name", FURTHER)
def test_a_rollout_begins_the_same_in_another_batch(model, name):
    """With such weights, rounding differences between batches grow from step to step, so later tokens may differ."""
    mixer, sampling = mixer_for(model, name, 0.5), Sampling(8, TEMPERATURE)
    together = engine(model).generate(PROMPTS[:9], range(9), sampling, mixer)
    split = engine(model, 4).generate(PROMPTS[:9], range(9), sampling, mixer)
    for one, other in zip(together, split, strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.records.positions, other.records.positions)
        assert torch.equal(one.records.candidates, other.records.candidates)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_gradient_of_the_embedding_matrix_is_that_of_an_independent_product(strategy):
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(VOCABULARY, (2, 6), generator=generator)
    mask = torch.tensor([[False, True, True, False], [True, False, False, True]])
    logits, seeds = some_logits(8), torch.tensor([4, 11])
    step = decided(strategy, logits, sampled=ids[:, 2:].flatten())
    candidates = step.candidates.view(2, 4, -1)
    weights = step.weights.view(2, 4, -1)
    embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
    target = torch.randn(2, 6, WIDTH, generator=generator)
    mixture = InputMixture(mask, candidates, weights, seeds, torch.zeros(2).long(), strategy)
    with mixed_inputs(embedding, mixture):
        output = embedding(ids)
    (output * target).sum().backward()

    selection = torch.nn.functional.one_hot(ids, VOCABULARY).double()
    noise = torch.zeros(2, 6, WIDTH, dtype=torch.double)
    for row, column in mask.nonzero().tolist():
        selection[row, 2 + column] = 0
        for token, weight in zip(candidates[row, column], weights[row, column], strict=True):
            selection[row, 2 + column, token] += weight.double()
        if isinstance(strategy, Gaussian):
            vector = embedding.weight.detach()[ids[row, 2 + column]][None]
            noisy = add_noise(vector, seeds[row : row + 1], torch.tensor([column]), strategy.noise_std)
            noise[row, 2 + column] = (noisy - vector)[0].double()
    matrix = embedding.weight.detach().double().requires_grad_()
    expected = selection @ matrix + noise
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    (expected * target).sum().backward()
    torch.testing.assert_close(embedding.weight.grad.double(), matrix.grad, atol=1e-5, rtol=1e-5)
    touched = candidates[mask].unique()
    assert (embedding.weight.grad[touched] != 0).any(dim=1).all()


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_those_that_come_with_us_stand_the_trial_of_a_users(strategy):
    try_strategy(strategy)
    assert load_strategy(source_of(strategy)) == strategy, "in another process too"
    assert serves(strategy) == (strategy == Neighbor(3))


# --- settings -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Neighbor(3)),
        ({"label": "sampled", "weights": "release", "k": 2}, Neighbor(2, "sampled", "release")),
        ({"strategy": "soft", "k": 40}, Soft(40)),
        ({"strategy": "soft", "label": "sampled"}, Soft(3, "sampled")),
        ({"strategy": "gumbel"}, Gumbel(3)),
        ({"strategy": "gumbel", "gumbel_temperature": 0.1}, Gumbel(3, 0.1)),
        ({"strategy": "gumbel", "noise_in_weights": False}, Gumbel(3, 0.5, noise_in_weights=False)),
    ],
    ids=str,
)
def test_settings_make_the_strategy_and_defaults_are_not_in_keys(settings, expected):
    config = load_config(TINY, [f"mixing.{name}={str(value).lower()}" for name, value in settings.items()]).mixing
    assert load_strategy(strategy_source(config)) == expected
    new = {"label", "weights", "gumbel_temperature", "noise_in_weights"}
    assert new & config.model_dump().keys() == new & settings.keys(), "the keys of runs without them stay"
    assert MixingConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["strategy=token", "label=sampled"],
            "mixing.label='sampled' has no effect with strategy='token': leave it out",
        ),
        (["strategy=gumbel", "label=sampled"], "mixing.label='sampled' has no effect with strategy='gumbel'"),
        (["strategy=soft", "weights=release"], "mixing.weights='release' has no effect with strategy='soft'"),
        (["weights=release", "k=1"], "mixing.weights='release' has no effect with k=1"),
        (["gumbel_temperature=1"], "mixing.gumbel_temperature=1.0 has no effect with strategy='neighbor'"),
        (["noise_in_weights=false"], "mixing.noise_in_weights=False has no effect with strategy='neighbor'"),
        (
            ["strategy=gumbel", "noise_in_weights=false", "gumbel_temperature=1"],
            "mixing.gumbel_temperature=1 has no effect with noise_in_weights=false",
        ),
        (
            ["strategy=package.module:Own", "label=sampled"],
            "mixing.label='sampled' has no effect with strategy='package.module:Own'",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(settings, said):
    with pytest.raises(ConfigError) as refused:
        load_config(TINY, [f"mixing.{setting}" for setting in settings])
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_only_neighbors_are_bounded_by_the_index(model):
    index = NeighborIndex.build(model.get_input_embeddings().weight, eligible(), candidates=2, block_rows=64)
    assert build_mixer(MixingConfig(strategy="soft", k=30), index, None).k == 30
    assert build_mixer(MixingConfig(k=3, label="sampled"), index, None).k == 3
    with pytest.raises(ConfigError, match=r"mixing\.k=4 needs 3 neighbors but the index holds 2"):
        build_mixer(MixingConfig(k=4, label="sampled"), index, None)
    with pytest.raises(ConfigError, match=r"mixing\.k=49: the model has 48 tokens; lower mixing\.k"):
        build_mixer(MixingConfig(strategy="soft", k=49), index, None)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (["mixing.rate=1"], True),
        (["mixing.rate=1", "mixing.k=1"], True),
        (["mixing.rate=1", "mixing.strategy=soft"], True),
        (["mixing.rate=0.99"], False),
        (["mixing.rate=1", "mixing.label=sampled"], False),
        (["mixing.rate=1", "mixing.strategy=soft", "mixing.label=sampled"], False),
        (["mixing.rate=1", "mixing.strategy=gumbel"], False),
        (["mixing.rate=1", "mixing.strategy=gaussian"], False),
    ],
    ids=str,
)
def test_a_run_whose_rollouts_cannot_differ_is_warned_of_and_only_such_a_run(model, settings, same):
    config = load_config(TINY, settings)
    warnings = [finding for finding in check_exploration(config) if finding.subject == "mixing.rate"]
    assert bool(warnings) == same
    if warnings:
        assert warnings[0].level == "warning"
        assert warnings[0].line.endswith(
            "are the same until '</think>'; lower mixing.rate, or set mixing.label to 'sampled'"
        )
        assert f"the {config.rollout.group_size} rollouts of a group" in warnings[0].line
    # It is so: one prompt, many seeds. A token that may not be mixed is sampled, so the texts are compared up to there.
    strategy = load_strategy(strategy_source(config.mixing))
    mixer = mixer_for(model, strategy, config.mixing.rate)
    rollouts = engine(model).generate([PROMPTS[0]] * 12, range(12), Sampling(6, TEMPERATURE), mixer)
    begins = [one.token_ids[: len(one.records.positions)] for one in rollouts]
    shortest = min(map(len, begins))
    if same:
        assert shortest > 0
        assert len({tuple(begin[:shortest]) for begin in begins}) == 1
    elif config.mixing.rate == 1:
        assert len({tuple(one.token_ids) for one in rollouts}) > 6


def test_answers_of_an_evaluation_that_cannot_differ_are_warned_of():
    lines = [each.line for each in check_exploration(load_config(TINY, ["evaluation.mixing.rate=1"]))]
    assert len(lines) == 1
    assert lines[0].startswith("evaluation.mixing.rate=1 with strategy='neighbor' and label='anchor'")
    assert "answers to a problem are the same" in lines[0]
    assert not list(check_exploration(load_config(TINY)))
