"""The slots of a serving engine: their allocation, their contents, and the returned records."""

import pytest
import torch

from ngrpo.mixing.counter import GATE, uniform
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.neighbor_mixing import add_noise
from ngrpo.mixing.strategies import Gaussian, Neighbor
from ngrpo.mixing.strategy import Decision, Strategy
from ngrpo.rollout.slots import MixingSlots, RequestSettings

VOCABULARY = 12
MARKER = (7, 8)
NOISY, TOP = 100, 101
"""Numbers of strategies; any other is the one with that many candidates, `Neighbor(k)`."""


class Top(Strategy):
    """The two most likely tokens, whatever was drawn."""

    k = 2

    def decide(self, step):
        logits, candidates = step.scaled_logits.topk(2)
        return Decision(step.sampled, candidates, logits.softmax(-1))


def settings(name: str, k: int | None = None, **values) -> RequestSettings:
    defaults = {"seed": 1, "temperature": 0.7, "top_p": 1.0, "max_tokens": 6, "strategy": k}
    return RequestSettings(name, **(defaults | values))


def marker(*tokens: int) -> EndMarker | None:
    """The marker that these tokens spell, each a letter of its own."""
    letters = [bytes([97 + token]) for token in range(VOCABULARY)]
    return EndMarker.of(b"".join(letters[token] for token in tokens).decode(), letters) if tokens else None


def mixing_slots(**options) -> MixingSlots:
    slots = MixingSlots(torch.device("cpu"), 2, **options)
    neighbors = (torch.arange(VOCABULARY)[:, None] + torch.arange(1, 5)) % VOCABULARY
    eligible = torch.ones(VOCABULARY, dtype=torch.bool)
    eligible[0] = False
    slots.set_index(neighbors, eligible, marker(*MARKER))
    for k in range(1, 6):
        slots.add_strategy(k, Neighbor(k))
    slots.add_strategy(NOISY, Gaussian(0.5))
    slots.add_strategy(TOP, Top())
    return slots


@pytest.fixture
def slots():
    return mixing_slots()


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


def test_a_slot_that_is_given_again_has_forgotten_its_former_owner(slots):
    first = slots.add("a", settings("a", rate=1.0, k=3))
    decide(slots, [first], [0], [MARKER[0]])
    decide(slots, [first], [1], [MARKER[1]])
    slots.take(["a"])
    assert slots.add("b", settings("b", rate=1.0, k=3)) == first
    decide(slots, [first], [0], [3])
    (record,) = slots.take(["b"])
    assert record.mixed.tolist() == [True] + [False] * 5, "the former owner's end of mixing, or what it mixed, shows"
    # Nothing is written for a request that does not mix while no other does either.
    assert slots.add("c", settings("c")) == first
    decide(slots, [first], [0], [3])
    embeddings = torch.randn(1, 4)
    same = slots.mix(lambda ids: torch.zeros(len(ids), 4), embeddings, torch.tensor([first]), torch.tensor([0]))
    assert torch.equal(same, embeddings)
    (record,) = slots.take(["c"])
    assert not record.mixed.any()


def test_a_narrower_index_finds_nothing_of_the_wider_one(slots):
    slots.add("a", settings("a", rate=1.0, k=5))
    decide(slots, [slots.slot("a")], [0], [3])
    slots.set_index((torch.arange(VOCABULARY)[:, None] + 1) % VOCABULARY, torch.ones(VOCABULARY).bool(), None)
    row = slots.add("b", settings("b", rate=1.0, k=2))
    decide(slots, [row], [0], [3])
    wide, narrow = slots.take(["a", "b"])
    assert (wide.weights.shape, narrow.weights.shape) == ((6, 5), (6, 2))
    assert wide.mixed[0]
    assert narrow.mixed[0]
    torch.testing.assert_close(narrow.weights[0].sum(), torch.tensor(1.0))


def test_a_shorter_marker_finds_nothing_of_the_longer_one(slots):
    for tokens in ((1, 2, 3, 4, 5), (7,)):
        slots.set_index(slots._neighbors, slots._eligible, marker(*tokens))
        row = slots.add(str(tokens), settings(str(tokens), rate=1.0, k=2))
        for position, token in enumerate((1, 2, 3, 4, 6)):
            # Rows of other requests come at any position.
            decide(slots, [row, -1], [position, 4 if tokens == (7,) else position], [token] * 2)
    for record in slots.take(["(1, 2, 3, 4, 5)", "(7,)"]):
        assert record.mixed.tolist() == [True] * 5 + [False]


def test_a_request_that_comes_back_keeps_what_it_has(slots):
    row = slots.add("a", settings("a", rate=1.0, k=3))
    decide(slots, [row], [0], [3])
    assert slots.add("a", settings("a", rate=1.0, k=3)) == row
    decide(slots, [row], [0], [5], emits=False)
    (record,) = slots.take(["a"])
    assert record.mixed[0]
    assert record.logprobs[0] > -0.01, "the token of the first time stays"


def test_what_is_computed_in_the_middle_of_a_prompt_or_again_is_not_remembered(slots):
    row = slots.add("a", settings("a", rate=1.0, k=3))
    decide(slots, [row], [0], [3])
    even = slots.decide(torch.zeros(1, VOCABULARY), torch.tensor([row]), torch.tensor([0]), torch.tensor([False]))
    assert even.shape == (1,)
    (record,) = slots.take(["a"])
    assert record.logprobs[0] > -0.01


def test_the_marker_does_not_begin_before_the_response(slots):
    slots.set_index(slots._neighbors, slots._eligible, marker(7, 7))
    row = slots.add("a", settings("a", rate=1.0, k=2))
    for position, token in enumerate((7, 3, 7, 7, 3)):
        decide(slots, [row], [position], [token])
    (record,) = slots.take(["a"])
    assert record.mixed.tolist() == [True, True, True, True, False, False]


def test_the_nucleus_is_the_requests_own(slots):
    rows = [slots.add(name, settings(name, top_p=top_p, max_tokens=60)) for name, top_p in (("a", 1.0), ("b", 0.5))]
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 3] = 1.8  # at a temperature of 0.7 it has just more than half of the probability
    drawn = [slots.decide(logits, torch.tensor(rows), torch.full((2,), at), torch.ones(2).bool()) for at in range(60)]
    whole, nucleus = torch.stack(drawn).T
    assert (nucleus == 3).all()
    assert 10 < (whole == 3).sum() < 50
    (record,) = slots.take(["b"])
    expected = (logits[0] / 0.7).log_softmax(0)[3].expand(60)
    torch.testing.assert_close(record.logprobs, expected, msg="log-probabilities are those before the nucleus")


def test_noise_is_that_of_the_request_and_goes_to_the_token_that_was_drawn(slots):
    plain, noisy = slots.add("a", settings("a", rate=1.0, k=1)), slots.add("b", settings("b", rate=1.0, k=NOISY))
    rows, table = torch.tensor([plain, noisy]), torch.randn(VOCABULARY, 64)
    tokens = torch.stack(
        [slots.decide(torch.zeros(2, VOCABULARY), rows, torch.full((2,), at), torch.ones(2).bool()) for at in range(6)]
    )
    assert (tokens[:, 0] == 0).any(), "an even distribution's most likely token"
    assert len(set(tokens[:, 1].tolist())) > 1, "drawn, not the most likely"
    token, start = torch.full((2,), int(tokens[1, 1])), torch.ones(2, dtype=torch.long)
    mixed = slots.mix(lambda ids: table[ids], table[token], rows, start)
    expected = add_noise(table[token[:1]], torch.tensor([1]), start[:1], 0.5)
    torch.testing.assert_close(mixed[1:], expected)
    assert not torch.equal(mixed[1], table[token[0]])
    assert torch.equal(mixed[0], table[token[0]])


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
    mixed = slots.mix(lambda ids: table[ids], embeddings, torch.tensor([-1, row]), torch.tensor([0, 0]))
    assert torch.equal(mixed[0], embeddings[0])
    assert not torch.equal(mixed[1], embeddings[1])


def test_a_mixture_is_the_weighted_sum_over_the_requests_own_candidates(slots):
    table = torch.randn(VOCABULARY, 4)
    narrow, wide = slots.add("a", settings("a", rate=1.0, k=2)), slots.add("b", settings("b", rate=1.0, k=4))
    logits = torch.randn(2, VOCABULARY)
    logits[:, 3] = 5.0
    rows, start = torch.tensor([narrow, wide]), torch.zeros(2, dtype=torch.long)
    slots.decide(logits, rows, start, torch.ones(2, dtype=torch.bool))
    mixed = slots.mix(lambda ids: table[ids], table[[3, 3]], rows, start)
    for row, k in enumerate((2, 4)):
        candidates = torch.arange(3, 3 + k)
        weights = (logits[row, candidates] / 0.7).softmax(0)
        torch.testing.assert_close(mixed[row], weights @ table[candidates])


def test_mixtures_are_laid_over_their_rows_alone(slots):
    table = torch.randn(VOCABULARY, 4)
    mixes, plain = slots.add("a", settings("a", rate=1.0, k=3)), slots.add("b", settings("b"))
    decide(slots, [mixes, plain], [0, 0], [3, 4])
    rows, of, positions = torch.tensor([4, 2, 0]), torch.tensor([mixes, plain, -1]), torch.tensor([0, 0, 0])
    before = torch.randn(5, 4)
    batch, asked = before.clone(), []

    def embed(ids):
        asked.append(len(ids))
        return table[ids]

    slots.mix_in_place(embed, batch, rows, of, positions)
    assert torch.equal(batch[:4], before[:4])
    assert torch.equal(batch[rows], slots.mix(lambda ids: table[ids], before[rows], of, positions))
    assert not torch.equal(batch[4], before[4])
    assert asked == [slots._tables.width], "the candidates of one row"
    slots.mix_in_place(embed, batch, rows[1:], of[1:], positions[1:])
    assert len(asked) == 1, "where nothing is mixed nothing is looked up"


def test_logits_that_may_be_overwritten_decide_the_same(slots):
    row = torch.tensor([slots.add("a", settings("a", rate=0.5, k=3, max_tokens=50))])
    one = torch.ones(1, dtype=torch.bool)
    for position in range(50):
        logits, at = torch.randn(1, VOCABULARY), torch.tensor([position])
        kept = logits.clone()
        token, record = slots.decide(logits, row, at, one), slots._tables.logprobs[row, position].clone()
        assert torch.equal(logits, kept)
        assert torch.equal(token, slots.decide(logits, row, at, one, overwrite=True))
        assert torch.equal(record, slots._tables.logprobs[row, position])


def test_strategies_of_one_batch_are_each_requests_own(slots):
    table = torch.randn(VOCABULARY, 4)
    rows = torch.tensor(
        [slots.add(name, settings(name, rate=1.0, k=k)) for name, k in (("a", 3), ("b", TOP), ("c", NOISY))]
    )
    logits = torch.randn(3, VOCABULARY)
    logits[:, 0] = -torch.inf  # a token that may not be mixed
    tokens = slots.decide(logits, rows, torch.zeros(3).long(), torch.ones(3).bool())
    mixed = slots.mix(lambda ids: table[ids], table[tokens], rows, torch.zeros(3).long())
    anchor = int(logits[0].argmax())
    candidates = torch.tensor([anchor, (anchor + 1) % VOCABULARY, (anchor + 2) % VOCABULARY])
    torch.testing.assert_close(mixed[0], (logits[0, candidates] / 0.7).softmax(0) @ table[candidates])
    top = logits[1].topk(2)
    torch.testing.assert_close(mixed[1], (top.values / 0.7).softmax(0) @ table[top.indices])
    torch.testing.assert_close(mixed[2:], add_noise(table[tokens[2:]], torch.tensor([1]), torch.tensor([0]), 0.5))
    neighbor, own, noisy = slots.take(["a", "b", "c"])
    assert own.candidates[0].tolist() == top.indices.tolist(), "they cannot be told from the token"
    assert own.candidates.shape == own.weights.shape == (6, 2)
    assert neighbor.candidates is None
    assert noisy.candidates is None
    assert neighbor.weights.shape == (6, 3)


def test_a_step_that_is_decided_twice_moves_the_marker_on_once(slots):
    slots.set_index(slots._neighbors, slots._eligible, marker(7, 7))
    row = slots.add("a", settings("a", rate=1.0, k=2))
    for position, token in enumerate((7, 7, 3, 3)):
        decide(slots, [row], [position], [token])
        if position == 0:
            decide(slots, [row], [position], [token])
    (record,) = slots.take(["a"])
    assert record.mixed.tolist() == [True, True, False, False, False, False]


def test_a_position_takes_few_bytes_whatever_the_vocabulary(slots):
    """Serving engines hold thousands of requests of thousands of tokens: nothing of the vocabulary's size may come with each."""
    requests, length = 8, 4096
    for row in range(requests):
        slots.add(str(row), settings(f"r{row}", rate=1.0, k=3, max_tokens=length))
    tables = vars(slots._tables).values()
    size = sum(table.numel() * table.element_size() for table in tables)
    assert size / ((requests + 1) * length) <= 64
    assert all(VOCABULARY not in table.shape for table in tables)
