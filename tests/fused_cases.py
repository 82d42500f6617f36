"""The fused kernels of a decode step under Triton's interpreter, each case a function; prints what came of those it is asked for.

Whether Triton interprets is settled when it is imported, for the whole process: so the cases have one of their own.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import json
import sys
import traceback
from dataclasses import fields
from unittest import mock

import test_slots
import torch
from torch import Tensor

from ngrpo.mixing import counter
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.strategies import Gaussian, Neighbor, Token
from ngrpo.rollout.slots import MixingSlots, RequestSettings

CPU = torch.device("cpu")
MixingSlots(CPU, 1)
assert "triton" not in sys.modules, "a processor's path imports Triton"

import triton
import triton.language as tl

from decode_traffic import counted
from ngrpo.rollout.fused import launch
from ngrpo.rollout.fused.counter import uniform
from quick_interpreter import patch_once

patch_once()

BLOCK = 64
WEIGHT_BOUND = 2e-6
"""Most that a weight of a mixture may differ from the reference's."""
LOGPROB_BOUND = 4e-6
"""Likewise a log-probability, beside a rounding of float32 of the largest scaled logit."""
BOUNDARY = 1e-6
"""A token may differ only where the uniform number is so near to a boundary of the cumulative distribution."""
NOISY = 50
"""Number of a strategy that the kernels do not serve."""


def engine(vocabulary: int, requests: list[tuple[int | None, dict]], *, fused: bool, marker: str = "#$") -> MixingSlots:
    """Slots with strategies `Neighbor(1)` to `Neighbor(5)` under their k, `Token` under 9, and requests 0, 1, ..."""
    slots = MixingSlots(CPU, len(requests), fused=fused)
    ids = torch.arange(vocabulary)
    neighbors = (ids[:, None] * 7 + torch.tensor([3, 11, 5, 17])) % vocabulary
    letters = [bytes([33 + token % 90]) for token in range(vocabulary)]
    slots.set_index(neighbors.int(), ids % 5 != 0, EndMarker.of(marker, letters) if marker else None)
    for k in range(1, 6):
        slots.add_strategy(k, Neighbor(k))
    slots.add_strategy(9, Token())
    slots.add_strategy(NOISY, Gaussian(0.5))
    defaults = {"temperature": 0.7, "top_p": 1.0, "max_tokens": 12, "rate": 0.6}
    for number, (strategy, values) in enumerate(requests):
        own = defaults | {"seed": 2**33 * (number + 1) + number, "strategy": strategy} | values
        slots.add(str(number), RequestSettings(str(number), **own))
    return slots


def pair(*arguments, **keywords) -> tuple[MixingSlots, MixingSlots]:
    """The reference, and the one with kernels."""
    return engine(*arguments, fused=False, **keywords), engine(*arguments, fused=True, **keywords)


def compare(reference: MixingSlots, ours: MixingSlots, logits: Tensor, slots: Tensor, positions: Tensor, emits: Tensor):
    """Decide a step twice from the same tables and compare everything."""
    for each in fields(reference._tables):
        getattr(ours._tables, each.name).copy_(getattr(reference._tables, each.name))
    expected = reference.decide(logits, slots, positions, emits)
    tokens = ours.decide(logits, slots, positions, emits)
    scaled = logits.float() / reference._tables.temperature[slots][:, None]
    cumulative = scaled.double().softmax(-1).cumsum(-1)
    drawn = counter.uniform(reference._tables.seed[slots], positions, counter.TOKEN)
    for row in (tokens != expected).nonzero().flatten().tolist():
        near = (cumulative[row] - drawn[row]).abs().min()
        assert near <= BOUNDARY, f"row {row}: {tokens[row]} for {expected[row]}, {near} from a boundary"
    wanted, found = reference._tables, ours._tables
    if not torch.equal(tokens, expected):
        return tokens
    for name in ("seed", "temperature", "top_p", "rate", "strategy"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    # The last row takes what the reference is to ignore; the kernels write nothing of the kind.
    for name in ("progress", "mixed", "candidates"):
        assert torch.equal(getattr(found, name)[:-1], getattr(wanted, name)[:-1]), name
    torch.testing.assert_close(found.weights[:-1], wanted.weights[:-1], atol=WEIGHT_BOUND, rtol=0, equal_nan=True)
    size = float(scaled[scaled.isfinite()].abs().max()) if scaled.isfinite().any() else 0.0
    atol = LOGPROB_BOUND + size * 2.0**-22
    torch.testing.assert_close(found.logprobs[:-1], wanted.logprobs[:-1], atol=atol, rtol=0, equal_nan=True)
    return tokens


@triton.jit
def _uniforms(seeds, positions, out, STREAM: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, uniform(tl.load(seeds + at), tl.load(positions + at), STREAM))


def case_random_numbers_are_those_of_the_counter_bit_for_bit():
    edges = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 12345, 2**63 - 1])
    seeds = torch.cat([edges.repeat_interleave(7), torch.randint(2**63 - 1, (463,))])
    positions = torch.cat([torch.tensor([0, 1, 2, 8191, 2**31, 2**32 - 1, -1]).repeat(7), torch.randint(2**15, (463,))])
    for stream in (counter.GATE, counter.TOKEN):
        out = torch.empty(512, dtype=torch.float64)
        _uniforms[(1,)](seeds, positions, out, STREAM=stream, SIZE=512)
        assert torch.equal(out, counter.uniform(seeds, positions, stream))


def case_random_shapes_types_strategies_rates_and_markers():
    for vocabulary, dtype, marker, strategies in (
        (1, torch.float32, "", (1, None)),
        (37, torch.float16, "#", (2, 9, 3)),
        (64, torch.bfloat16, "", (1, 4, 9, None, 5)),
        (65, torch.float32, "##$", (3, 3, None, 9)),
        (333, torch.bfloat16, "#$", (2, 9, 5, None, 1, 3)),
    ):
        requests = [
            (strategy, {"temperature": 0.3 + 0.4 * row, "rate": (0.0, 0.5, 1.0)[row % 3], "max_tokens": 4 + row})
            for row, strategy in enumerate(strategies)
        ]
        reference, ours = pair(vocabulary, requests, marker=marker)
        held = torch.tensor([reference.slot(str(row)) for row in range(len(requests))])
        for step in range(2):
            order = torch.randperm(len(requests))
            slots = torch.cat([held[order], torch.tensor([-1])])
            positions = torch.full_like(slots, step) + torch.randint(-1, 2, slots.shape) * (
                torch.rand(slots.shape) < 0.2
            )
            emits = torch.rand(slots.shape) < 0.9
            # Of a wider tensor, as vLLM's are of its padded vocabulary.
            logits = (3 * torch.randn(len(slots), vocabulary + 5)).to(dtype)[:, :vocabulary]
            compare(reference, ours, logits, slots, positions, emits)


def case_the_end_marker_ends_mixing_in_both():
    reference, ours = pair(200, [(3, {"rate": 1.0}), (9, {"rate": 1.0})])
    slots = torch.tensor([reference.slot("0"), reference.slot("1")])
    for position, token in enumerate((2, 3, 7, 7)):  # "#$"
        logits = torch.zeros(2, 200)
        logits[:, token] = 60.0
        compare(reference, ours, logits, slots, torch.full((2,), position), torch.ones(2).bool())
    for record in ours.take(["0", "1"]):
        assert record.mixed[:4].tolist() == [True, True, False, False]


def case_a_step_that_is_decided_twice_changes_nothing():
    _, ours = pair(100, [(3, {"rate": 1.0})])
    slots, start, emits = torch.tensor([ours.slot("0")]), torch.tensor([0]), torch.ones(1).bool()
    logits = torch.randn(1, 100)
    first = ours.decide(logits, slots, start, emits)
    before = [getattr(ours._tables, each.name).clone() for each in fields(ours._tables)]
    assert torch.equal(ours.decide(logits, slots, start, emits), first)
    ours.decide(torch.randn(1, 100), slots, start, ~emits)
    ours.decide(torch.randn(1, 100), torch.tensor([-1]), start, emits)
    ours.decide(torch.randn(1, 100), slots, torch.tensor([10**6]), emits)
    for each, held in zip(fields(ours._tables), before, strict=True):
        assert torch.equal(getattr(ours._tables, each.name), held), f"{each.name}: written by a row that emits nothing"


def case_a_boundary_of_the_cumulative_distribution_is_met_to_the_stated_distance():
    places = ((3, 9), (3, 63), (63, 64), (10, 140))  # in one block, at its edges, across blocks
    requests = [(None, {"temperature": 1.0, "seed": 11 + row}) for row in range(8)]
    reference, ours = pair(150, requests)
    slots = torch.tensor([ours.slot(str(row)) for row in range(8)])
    position = torch.zeros(8, dtype=torch.long)
    drawn = counter.uniform(ours._tables.seed[slots], position, counter.TOKEN)
    logits, expected = torch.full((8, 150), -torch.inf), []
    for row in range(8):
        first, second = places[row % 4]
        boundary = drawn[row] + (BOUNDARY if row < 4 else -BOUNDARY)
        logits[row, first], logits[row, second] = boundary.log(), torch.log1p(-boundary)
        expected.append(first if row < 4 else second)
    assert compare(reference, ours, logits, slots, position, torch.ones(8).bool()).tolist() == expected


def case_hostile_logits():
    inf, nan = torch.inf, torch.nan
    rows = []
    for values in (
        {},  # ties throughout
        {5: 2.0, 70: 2.0, 149: 2.0},  # ties across blocks
        {0: -0.0, 1: 0.0},
        {149: nan},
        {70: nan, 3: 9.0, 149: nan},
        {70: inf},
        {70: inf, 3: inf, 5: nan},
        {70: -inf, 3: -inf},
        dict.fromkeys(range(64), -inf),  # a whole block
        dict.fromkeys(range(150), -inf),
        dict.fromkeys(range(150), inf),
        {7: 3e38, 9: -3e38},
        {7: 1e-45, 9: -1e-45},
        dict.fromkeys(range(149), -inf),  # the last token is certain
    ):
        row = torch.zeros(150)
        for place, value in values.items():
            row[place] = value
        rows += [row, row]
    for temperature in (0.7, 1.0):
        settings = {"rate": 1.0, "temperature": temperature}
        reference, ours = pair(150, [(3 if row % 2 else None, settings) for row in range(len(rows))], marker="")
        slots = torch.tensor([ours.slot(str(row)) for row in range(len(rows))])
        position = torch.full_like(slots, 2)
        compare(reference, ours, torch.stack(rows), slots, position, torch.ones(len(rows)).bool())


def case_a_token_that_may_not_be_drawn_is_never_drawn():
    requests = [(None, {"temperature": 1.0, "max_tokens": 40})] * 24
    reference, ours = pair(150, requests)
    slots = torch.tensor([ours.slot(str(row)) for row in range(24)])
    allowed = torch.rand(24, 150) < 0.05
    allowed[:, 100] = True
    logits = torch.randn(24, 150).masked_fill(~allowed, -torch.inf)
    tokens = compare(reference, ours, logits, slots, torch.arange(24), torch.ones(24).bool())
    assert allowed[torch.arange(24), tokens].all()


def case_log_probabilities_are_those_before_the_nucleus():
    requests = [(strategy, {"top_p": top_p}) for strategy, top_p in ((None, 0.5), (3, 0.3), (9, 1.0), (2, 0.9))] * 3
    reference, ours = pair(100, requests)
    slots, emits = torch.tensor([ours.slot(str(row)) for row in range(12)]), torch.ones(12).bool()
    tokens = [
        compare(reference, ours, 0.3 * torch.randn(12, 100), slots, torch.full((12,), position), emits)
        for position in range(2)
    ]
    assert torch.stack(tokens).unique().numel() > 12
    logits = torch.zeros(12, 100)
    logits[:, 3] = 4.0  # has 0.75 of the probability at a temperature of 0.7
    for position in range(2, 5):
        assert ours.decide(logits, slots, torch.full((12,), position), emits)[[0, 4, 8]].tolist() == [3] * 3
    expected = (logits[0] / 0.7).log_softmax(0)[3].expand(3, 3)
    torch.testing.assert_close(ours._tables.logprobs[slots[[0, 4, 8]], 2:5], expected)


def case_another_strategy_takes_the_whole_batch_to_torch():
    reference, ours = pair(100, [(3, {"rate": 1.0}), (None, {})])
    slots = torch.tensor([ours.slot("0"), ours.slot("1"), -1])
    table, emits = torch.randn(100, 8), torch.ones(3).bool()

    def step(position: int) -> int:
        with mock.patch.object(launch, "decide", wraps=launch.decide) as decide:
            compare(reference, ours, torch.randn(3, 100), slots, torch.full((3,), position), emits)
        with mock.patch.object(launch, "mix", wraps=launch.mix) as mix:
            at = torch.full((3,), position)
            embeddings = torch.randn(3, 8)
            mixtures = [each.mix(table.__getitem__, embeddings, slots, at) for each in (reference, ours)]
        torch.testing.assert_close(*mixtures)
        assert decide.call_count == mix.call_count
        return decide.call_count

    assert step(0) == 1
    for each in (reference, ours):
        each.finish(["1"])
        each.take(["1"])
        each.add("2", RequestSettings("2", 5, 0.7, 1.0, 12, 0.5, NOISY))
    slots[1] = ours.slot("2")
    assert step(1) == 0
    for each in (reference, ours):
        each.finish(["2"])
    slots[1] = -1
    assert step(2) == 1, "the kernels do not come back when the other strategy has gone"


def case_mixtures_are_the_references():
    for dtype, dimension in ((torch.float32, 70), (torch.bfloat16, 1030)):
        reference, ours = pair(100, [(k, {"rate": 0.7, "max_tokens": 3}) for k in (1, 2, 3, 5, 9, None)])
        held = torch.tensor([ours.slot(str(row)) for row in range(6)])
        for position in range(3):
            for each in (reference, ours):
                each.decide(
                    4 * torch.ones(6, 100).cumsum(1).sin(), held, torch.full((6,), position), torch.ones(6).bool()
                )
        ours._tables.weights.copy_(reference._tables.weights)
        assert torch.equal(ours._tables.mixed[held], reference._tables.mixed[held])
        assert ours._tables.mixed.any()
        slots, positions = torch.cat([held.repeat(3), torch.tensor([-1])]), torch.arange(19) // 6 % 3
        table = torch.randn(100, dimension).to(dtype)
        buffer, rows = torch.randn(25, dimension).to(dtype), torch.randperm(25)[:19]
        embed = mock.Mock(side_effect=table.__getitem__)
        expected = reference.mix(table.__getitem__, buffer[rows], slots, positions)
        mixed = ours.mix(embed, buffer[rows], slots, positions)
        assert embed.call_count == 1, "ranks that share the vocabulary call it alike"
        whole, shared = buffer.clone(), buffer.clone()
        ours.mix_in_place(embed, shared, rows, slots, positions)
        assert embed.call_count == 2
        ours.mix_in_place(embed, whole, rows, slots, positions, matrix=table)
        assert embed.call_count == 2, "the matrix is at hand"
        by_torch = buffer.clone()
        reference.mix_in_place(table.__getitem__, by_torch, rows, slots, positions, matrix=table)
        assert torch.equal(by_torch[rows], expected)
        for each in (whole, shared):
            assert torch.equal(each[rows], mixed)
            untouched = torch.ones(25).bool()
            untouched[rows] = False
            assert torch.equal(each[untouched], buffer[untouched])
        assert not torch.equal(mixed, buffer[rows])
        # The interpreter cuts float32 off where it makes bfloat16 of it; a GPU rounds.
        rtol = 0.0 if dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(mixed, expected, rtol=rtol, atol=1e-6 if rtol == 0 else 1e-3)


def case_a_step_at_full_size_reads_its_logits_once_and_waits_for_nothing():
    launch.BLOCK = 4096
    vocabulary, rows, dimension = 151_936, 2, 1536
    requests = [(3, {"rate": 1.0}), (9, {"rate": 1.0})]
    reference, ours = pair(vocabulary, requests)
    logits = (3 * torch.randn(rows, vocabulary)).bfloat16()
    slots = torch.tensor([ours.slot("0"), ours.slot("1")])
    position, emits = torch.zeros(rows, dtype=torch.long), torch.ones(rows).bool()
    compare(reference, ours, logits, slots, position, emits)
    matrix = torch.zeros(1, dimension, dtype=torch.bfloat16).expand(vocabulary, dimension)
    buffer, at = torch.zeros(rows, dimension, dtype=torch.bfloat16), torch.arange(rows)

    def step(slots_: MixingSlots, whole: Tensor | None) -> None:
        slots_.decide(logits, slots, position, emits)
        slots_.mix_in_place(
            lambda ids: torch.nn.functional.embedding(ids, matrix), buffer, at, slots, position, matrix=whole
        )

    for whole in (matrix, None):
        with counted() as traffic:
            step(ours, whole)
        print(f"kernels: {len(traffic.launches)} launches, {traffic.bytes / rows / 1e6:.3f} MB a row", file=sys.stderr)
        assert {"scan_blocks", "decide_rows", "mix_rows"} <= set(traffic.launches)
        assert traffic.faults == []
        assert len(traffic.launches) <= 12, traffic.launches
        assert traffic.bytes / rows <= 0.4e6
        assert traffic.largest < vocabulary / 10, "a tensor of the vocabulary's size"
    with counted() as traffic:
        step(reference, None)
    print(f"torch: {len(traffic.launches)} launches, {traffic.bytes / rows / 1e6:.3f} MB a row", file=sys.stderr)
    assert len(traffic.launches) > 12, "the count would let anything pass"
    assert traffic.bytes / rows > 2e6
    assert traffic.largest == rows * vocabulary


def case_the_count_sees_tensors_of_the_host_and_waiting():
    for fault in (
        lambda: torch.ones(2) + torch.tensor([1.0, 2.0]),
        lambda: torch.ones(2).sum().item(),
        lambda: torch.arange(3)[torch.ones(3).bool()],
        lambda: torch.zeros(3).index_put_((torch.ones(3).bool(),), torch.ones(())),
        lambda: torch.ones(3).nonzero(),
        lambda: bool(torch.ones(())),
    ):
        with counted() as traffic:
            fault()
        assert traffic.faults
    with counted() as traffic:
        torch.where(torch.ones(3).bool(), torch.ones(3), torch.zeros(3))
    assert traffic.faults == []


def case_the_tests_of_slots_pass_with_kernels():
    launch.BLOCK = 8
    tests = {name: test for name, test in vars(test_slots).items() if name.startswith("test_")}
    with mock.patch.object(launch, "decide", wraps=launch.decide) as decide:
        for name, test in tests.items():
            try:
                test(test_slots.mixing_slots(fused=True))
            except Exception as error:
                raise AssertionError(f"test_slots.py::{name}") from error
    assert decide.call_count > 100


def main(names: list[str]) -> None:
    results = {}
    for name in names:
        torch.manual_seed(0)
        launch.BLOCK = BLOCK
        try:
            globals()[name]()
            results[name] = ""
        except Exception:  # whatever it was, it is what the test shows
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
