"""The equations against an independent reference in numpy, and the properties of the counter-based gate."""

import math

import numpy as np
import pytest
import torch

from ngrpo.mixing.counter import GATE, NOISE, TOKEN, normal, uniform
from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.mixer import MixedStep, mixed_step
from ngrpo.mixing.neighbor_mixing import anchors, candidate_sets, gate, mix, mixing_weights, scale_logits
from ngrpo.mixing.records import InputMixture, RolloutRecords, collate
from ngrpo.mixing.strategies import Gaussian, Neighbor, Token
from ngrpo.mixing.strategy import Step, Strategy

VOCABULARY, WIDTH, K = 30, 8, 4


def reference_step(logits: np.ndarray, embedding: np.ndarray, temperature: float, k: int):
    """Equations 2 and 6-10 for one row, written with loops and float64."""
    scaled = [float(value) / temperature for value in logits]
    anchor = max(range(len(scaled)), key=lambda token: scaled[token])
    cosine = [
        float(row @ embedding[anchor]) / math.sqrt(float(row @ row) * float(embedding[anchor] @ embedding[anchor]))
        for row in embedding
    ]
    others = sorted((token for token in range(len(scaled)) if token != anchor), key=lambda token: -cosine[token])
    candidates = [anchor, *others[: k - 1]]
    exponentials = [math.exp(scaled[token] - scaled[anchor]) for token in candidates]
    weights = [value / sum(exponentials) for value in exponentials]
    mixture = sum(weight * embedding[token] for weight, token in zip(weights, candidates, strict=True))
    return candidates, weights, mixture


def neighbor_table(embedding: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(embedding.double(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-2)
    return similarity.argsort(dim=1, descending=True)[:, : K + 2].int()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0])
def test_equations_match_an_independent_reference(temperature):
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(VOCABULARY, WIDTH, generator=generator)
    logits = torch.randn(12, VOCABULARY, generator=generator) * 3
    scaled = scale_logits(logits, temperature)
    anchor = anchors(scaled)
    candidates = candidate_sets(anchor, neighbor_table(embedding), K)
    weights = mixing_weights(scaled, candidates)
    mixture = mix(embedding[candidates], weights)
    for row in range(len(logits)):
        expected = reference_step(logits[row].numpy(), embedding.double().numpy(), temperature, K)
        assert candidates[row].tolist() == expected[0]
        np.testing.assert_allclose(weights[row].numpy(), expected[1], atol=1e-6)
        np.testing.assert_allclose(mixture[row].numpy(), expected[2], atol=1e-5)


def test_the_arithmetic_is_that_of_float32_whatever_the_model_computes_in():
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(5, VOCABULARY, generator=generator) * 9).bfloat16()
    assert torch.equal(scale_logits(logits, 0.7), logits.float() / 0.7)
    embeddings = torch.randn(5, K, 256, generator=generator).bfloat16()
    weights = torch.rand(5, K, generator=generator).softmax(dim=1)
    mixture = mix(embeddings, weights)
    assert mixture.dtype == torch.bfloat16
    assert torch.equal(mixture, torch.einsum("nkd,nk->nd", embeddings.double(), weights.double()).bfloat16())


def test_one_candidate_is_the_anchor_alone():
    embedding = torch.randn(VOCABULARY, WIDTH)
    anchor = torch.tensor([3, 7])
    candidates = candidate_sets(anchor, neighbor_table(embedding), 1)
    assert candidates.tolist() == [[3], [7]]
    weights = mixing_weights(torch.randn(2, VOCABULARY), candidates)
    assert torch.equal(mix(embedding[candidates], weights), embedding[anchor])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 1.0])
def test_gate_has_its_rate_and_does_not_depend_on_the_batch(rate):
    seeds = torch.arange(400)[:, None].expand(400, 500) * 7919 + 2**40
    positions = torch.arange(500)[None, :].expand(400, 500)
    gated = gate(seeds.flatten(), positions.flatten(), rate).view(400, 500)
    tolerance = 5 * math.sqrt(max(rate * (1 - rate), 1e-12) / gated.numel())
    assert abs(gated.double().mean().item() - rate) <= tolerance
    alone = gate(seeds[17], positions[17], rate)
    assert torch.equal(alone, gated[17])


def test_gate_is_independent_across_positions_seeds_and_streams():
    seeds, positions = torch.arange(2000)[:, None] + 2**33, torch.arange(200)[None, :]
    draws = {stream: uniform(seeds, positions, stream) for stream in (GATE, TOKEN, NOISE)}
    flat = draws[GATE].flatten()
    pairs = [
        (draws[GATE][:, 1:], draws[GATE][:, :-1]),
        (draws[GATE][1:], draws[GATE][:-1]),
        (draws[GATE], draws[TOKEN]),
        (draws[TOKEN], draws[NOISE]),
    ]
    for first, second in pairs:
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(correlation.item()) < 5 / math.sqrt(first.numel())
    counts = torch.histc(flat, bins=20, min=0, max=1)
    expected = flat.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum().item() < 50  # chi-square, 19 degrees of freedom: p about 1e-4


def test_whether_a_step_is_mixed_says_nothing_of_the_token_that_would_be_drawn():
    seeds, positions = torch.arange(20_000) + 2**33, torch.arange(20_000) % 50
    gated = gate(seeds, positions, 0.3)
    assert torch.equal(gated, uniform(seeds, positions, GATE) < 0.3)
    draws = uniform(seeds, positions, TOKEN)
    assert abs(draws[gated].mean() - draws[~gated].mean()) < 0.02


def test_high_bits_of_the_seed_matter():
    low = uniform(torch.tensor([5]), torch.tensor([0]), GATE)
    high = uniform(torch.tensor([5 + 2**50]), torch.tensor([0]), GATE)
    assert low.item() != high.item()


def test_noise_is_standard_normal():
    noise = normal(torch.arange(300), torch.arange(300) % 7, 256).double()
    count = noise.numel()
    assert abs(noise.mean().item()) < 5 / math.sqrt(count)
    assert abs(noise.var().item() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**4).mean().item() - 3) < 5 * math.sqrt(96 / count)


def neighbors() -> torch.Tensor:
    return neighbor_table(torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(2)))


def decided(strategy: Strategy, logits: torch.Tensor, **changes) -> MixedStep:
    """Decide the first position of rows that are all gated."""
    rows = len(logits)
    sampled = changes.pop("sampled", torch.zeros(rows).long())
    active = changes.pop("active", torch.ones(rows).bool())
    eligible = changes.pop("eligible", torch.ones(logits.shape[1]).bool())
    step = Step(logits, sampled, torch.arange(rows), torch.zeros(rows).long(), neighbors(), eligible)
    return mixed_step(strategy, step, rate=1.0, active=active)


def test_a_step_leaves_out_rows_past_the_marker_and_anchors_that_may_not_be_mixed():
    eligible = torch.ones(VOCABULARY, dtype=torch.bool)
    eligible[5] = False
    logits = torch.zeros(4, VOCABULARY)
    logits[0, 3] = logits[1, 5] = logits[2, 8] = logits[3, 9] = 4.0
    active = torch.tensor([True, True, False, True])
    step = decided(Neighbor(K), logits, sampled=torch.tensor([1, 2, 3, 4]), eligible=eligible, active=active)
    assert step.mixed.tolist() == [True, False, False, True]
    assert step.tokens.tolist() == [3, 2, 3, 9], "rows that are not mixed emit what was sampled"
    assert torch.allclose(step.weights[step.mixed].sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_what_is_decided_on_a_processor_for_the_gated_rows_is_what_all_rows_would_get(rate):
    rows, strategy = 64, Neighbor(K)
    random = torch.Generator().manual_seed(3)
    seeds, positions = torch.arange(rows), torch.randint(0, 40, (rows,), generator=random)
    sampled = torch.randint(0, VOCABULARY, (rows,), generator=random)
    active, eligible = torch.rand(rows, generator=random) < 0.8, torch.rand(VOCABULARY, generator=random) < 0.9
    logits = torch.randn(rows, VOCABULARY, generator=random)
    step = Step(logits, sampled, seeds, positions, neighbors(), eligible)
    found, everything = mixed_step(strategy, step, rate=rate, active=active), strategy.decide(step)
    mixed = gate(seeds, positions, rate) & active & eligible[everything.tokens]
    assert torch.equal(found.mixed, mixed)
    assert mixed.any() == (rate > 0)
    assert torch.equal(found.tokens, torch.where(mixed, everything.tokens, sampled))
    assert torch.equal(found.candidates[mixed], everything.candidates[mixed])
    assert torch.equal(found.weights[mixed], everything.weights[mixed])


def test_gaussian_steps_keep_the_sampled_token():
    sampled = torch.tensor([4, 11, 2])
    step = decided(Gaussian(0.2), torch.randn(3, VOCABULARY), sampled=sampled)
    assert step.mixed.all()
    assert step.tokens.tolist() == sampled.tolist()
    assert step.candidates.tolist() == [[4], [11], [2]]


def test_noise_is_not_added_to_a_token_that_may_not_be_mixed():
    eligible = torch.ones(VOCABULARY, dtype=torch.bool)
    eligible[11] = False
    step = decided(Gaussian(0.2), torch.randn(3, VOCABULARY), sampled=torch.tensor([4, 11, 2]), eligible=eligible)
    assert step.mixed.tolist() == [True, False, True]
    assert step.tokens.tolist() == [4, 11, 2]


def test_without_mixing_a_step_is_the_sampled_token_and_its_embedding():
    sampled = torch.tensor([4, 11])
    step = decided(Token(), torch.randn(2, VOCABULARY), sampled=sampled)
    table = torch.randn(VOCABULARY, WIDTH)
    assert torch.equal(step.tokens, sampled)
    assert torch.equal(Token().embed(table[step.candidates], step.weights, sampled, sampled), table[sampled])


def records(version: int = 0) -> list[RolloutRecords]:
    return [
        RolloutRecords(torch.tensor([1, 3]), torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.7, 0.1, 0.1, 0.1]]), 9, version),
        RolloutRecords(torch.tensor([], dtype=torch.long), torch.zeros(0, K), 10, 0),
    ]


def batch() -> tuple[InputMixture, torch.Tensor]:
    tokens = [[4, 5, 6, 7], [1, 2]]
    mixture = collate(
        records(),
        tokens,
        4,
        strategy=Neighbor(K),
        neighbors=neighbors(),
        index_version=0,
        device="cpu",
    )
    return mixture, torch.tensor([[0, 0, *tokens[0]], [0, 0, *tokens[1], 0, 0]])


def test_mixed_inputs_replace_exactly_the_recorded_positions():
    embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
    mixture, ids = batch()
    with mixed_inputs(embedding, mixture):
        output = embedding(ids)
    plain = embedding.weight[ids]
    expected = plain.clone()
    for column, record in ((1, 0), (3, 1)):
        candidates = [ids[0, 2 + column].item(), *neighbors()[ids[0, 2 + column], : K - 1].tolist()]
        weights = records()[0].weights[record]
        expected[0, 2 + column] = sum(w * embedding.weight[c] for w, c in zip(weights, candidates, strict=True))
    torch.testing.assert_close(output, expected)
    assert not torch.allclose(output, plain)


def test_noise_replays_and_has_its_size():
    embedding = torch.nn.Embedding(VOCABULARY, 4096)
    mixture, ids = batch()
    mixture = InputMixture(
        mixture.mask, mixture.candidates[..., :1], torch.ones(2, 4, 1), mixture.seeds, mixture.positions, Gaussian(0.5)
    )
    outputs = []
    for _ in range(2):
        with mixed_inputs(embedding, mixture):
            outputs.append(embedding(ids))
    assert torch.equal(*outputs)
    noise = (outputs[0] - embedding.weight[ids])[0, 3]
    scale = embedding.weight[ids][0, 3].square().mean().sqrt()
    assert abs((noise.square().mean().sqrt() / scale).item() - 0.5) < 0.05


def test_gradient_of_the_embedding_matrix_matches_one_hot_products():
    embedding = torch.nn.Embedding(VOCABULARY, WIDTH).double()
    mixture, ids = batch()
    target = torch.randn(2, 6, WIDTH, dtype=torch.double)
    with mixed_inputs(embedding, mixture):
        (embedding(ids) * target).sum().backward()
    selection = torch.nn.functional.one_hot(ids, VOCABULARY).double()
    for row, column in mixture.mask.nonzero().tolist():
        selection[row, 2 + column] = 0
        for token, weight in zip(mixture.candidates[row, column], mixture.weights[row, column], strict=True):
            selection[row, 2 + column, token] += weight.double()
    matrix = embedding.weight.detach().clone().requires_grad_()
    ((selection @ matrix) * target).sum().backward()
    torch.testing.assert_close(embedding.weight.grad, matrix.grad, atol=1e-6, rtol=1e-6)


def test_a_forward_pass_that_forgets_the_embedding_is_an_error():
    embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
    mixture, ids = batch()
    with pytest.raises(RuntimeError, match="called 0 times"), mixed_inputs(embedding, mixture):
        pass
    with pytest.raises(ValueError, match="do not fit"), mixed_inputs(embedding, mixture):
        embedding(ids[:1])
    assert not embedding._forward_hooks
    assert not embedding._forward_pre_hooks


def test_records_of_another_index_version_are_refused():
    with pytest.raises(ValueError, match="version 3"):
        collate(
            records(version=3),
            [[4, 5, 6, 7], [1, 2]],
            4,
            strategy=Neighbor(K),
            neighbors=neighbors(),
            index_version=0,
            device="cpu",
        )


def test_candidates_that_were_recorded_are_taken_from_the_record():
    own = torch.tensor([[9, 8, 2, 3]], dtype=torch.int32)
    record = RolloutRecords(torch.tensor([1]), torch.tensor([[0.4, 0.3, 0.2, 0.1]]), 9, 0, own)
    mixture = collate([record], [[4, 5]], 2, strategy=Neighbor(K), neighbors=neighbors(), index_version=0, device="cpu")
    assert mixture.candidates[0, 1].tolist() == own[0].tolist()
    assert mixture.mask.tolist() == [[False, True]]
