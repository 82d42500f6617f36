"""The slots of a serving engine: who holds one, what is remembered, what comes back."""

import pytest
import torch

from ngrpo.mixing.counter import GATE, uniform
from ngrpo.rollout.slots import MixingSlots, RequestSettings

VOCABULARY = 12
MARKER = (7, 8)


def settings(name: str, **values) -> RequestSettings:
    return RequestSettings(**{"name": name, "seed": 1, "temperature": 0.7, "top_p": 1.0, "max_tokens": 6} | values)


@pytest.fixture
def slots():
    slots = MixingSlots(torch.device("cpu"), 2)
    neighbors = (torch.arange(VOCABULARY)[:, None] + torch.arange(1, 5)) % VOCABULARY
    eligible = torch.ones(VOCABULARY, dtype=torch.bool)
    eligible[0] = False
    slots.set_index(neighbors, eligible, MARKER)
    return slots


def decide(
    slots: MixingSlots, rows: list[int], positions: list[int], favored: list[int], emits: bool = True
) -> list[int]:
    logits = torch.zeros(len(rows), VOCABULARY)
    logits[torch.arange(len(rows)), torch.tensor(favored)] = 9.0
    emit = torch.full((len(rows),), emits)
    return slots.decide(logits, torch.tensor(rows), torch.tensor(positions), emit).tolist()


def test_more_requests_than_slots_grow_the_tables_and_keep_what_is_in_them(slots):
    first = slots.add("a", settings("a", rate=1.0, k=2))
    decide(slots, [first], [0], [3])
    rows = [slots.add(str(i), settings(f"r{i}", rate=1.0, k=4, max_tokens=9)) for i in range(7)]
    assert len({first, *rows}) == 8
    decide(slots, [first, *rows], [1] * 8, [4] * 8)
    (record,) = slots.take(["a"])
    assert record.mixed.tolist() == [True, True, False, False, False, False]
    assert record.weights.shape == (6, 2)
    torch.testing.assert_close(record.weights[:2].sum(1), torch.ones(2))


def test_a_finished_request_frees_its_slot_and_keeps_its_record(slots):
    for name in ("a", "b"):
        slots.add(name, settings(name, rate=1.0, k=3))
    decide(slots, [slots.slot("a")], [0], [3])
    slots.finish(["a", "unknown"])
    assert slots.slot("a") == -1
    again = slots.add("c", settings("c", rate=1.0, k=3))
    decide(slots, [again], [0], [0])  # a token that may not be mixed
    kept, new = slots.take(["a", "c"])
    assert kept.mixed[0]
    assert not new.mixed.any(), "the slot's former owner shows"
    with pytest.raises(KeyError):
        slots.take(["a"])


def test_a_request_that_comes_back_keeps_what_it_has(slots):
    row = slots.add("a", settings("a", rate=1.0, k=3))
    decide(slots, [row], [0], [3])
    assert slots.add("a", settings("a", rate=1.0, k=3)) == row
    decide(slots, [row], [0], [5], emits=False)
    (record,) = slots.take(["a"])
    assert record.mixed[0]
    assert record.logprobs[0] > -0.01, "the token of the first time stays"


def test_mixing_follows_gate_marker_and_eligibility(slots):
    row = slots.add("a", settings("a", seed=5, rate=0.5, k=3, max_tokens=40))
    for position in range(40):
        decide(slots, [row], [position], [7 if position == 20 else 8 if position == 21 else 3])
    expected = uniform(torch.tensor(5), torch.arange(40), GATE) < 0.5
    expected[22:] = False
    (record,) = slots.take(["a"])
    assert torch.equal(record.mixed, expected)
    assert expected[:22].any()


def test_rows_of_other_requests_are_left_alone(slots):
    row = slots.add("a", settings("a", rate=1.0, k=3))
    decide(slots, [-1, row, -1], [0, 0, 3], [1, 3, 4])
    embeddings = torch.randn(2, 4)
    table = torch.randn(VOCABULARY, 4)
    mixed = slots.mix(
        lambda ids: table[ids], embeddings, torch.tensor([3, 3]), torch.tensor([-1, row]), torch.tensor([0, 0])
    )
    assert torch.equal(mixed[0], embeddings[0])
    assert not torch.equal(mixed[1], embeddings[1])


def test_a_mixture_is_the_weighted_sum_over_the_requests_own_candidates(slots):
    table = torch.randn(VOCABULARY, 4)
    narrow, wide = slots.add("a", settings("a", rate=1.0, k=2)), slots.add("b", settings("b", rate=1.0, k=4))
    logits = torch.randn(2, VOCABULARY)
    logits[:, 3] = 5.0
    rows, start = torch.tensor([narrow, wide]), torch.zeros(2, dtype=torch.long)
    slots.decide(logits, rows, start, torch.ones(2, dtype=torch.bool))
    mixed = slots.mix(lambda ids: table[ids], table[[3, 3]], torch.tensor([3, 3]), rows, start)
    for row, k in enumerate((2, 4)):
        candidates = torch.arange(3, 3 + k)
        weights = (logits[row, candidates] / 0.7).softmax(0)
        torch.testing.assert_close(mixed[row], weights @ table[candidates])


def test_a_position_takes_few_bytes_whatever_the_vocabulary(slots):
    """Serving engines hold thousands of requests of thousands of tokens: nothing of the vocabulary's size may come with each."""
    requests, length = 8, 4096
    for row in range(requests):
        slots.add(str(row), settings(f"r{row}", rate=1.0, k=3, max_tokens=length))
    tables = vars(slots._tables).values()
    size = sum(table.numel() * table.element_size() for table in tables)
    assert size / ((requests + 1) * length) <= 64
    assert all(VOCABULARY not in table.shape for table in tables)
