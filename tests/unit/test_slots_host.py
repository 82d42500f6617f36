"""Host work for the slots of a serving engine: its amount, and that it never waits for the device."""

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ngrpo.mixing.strategies import Neighbor
from ngrpo.mixing.strategy import Decision, Strategy
from ngrpo.rollout import slots as module
from ngrpo.rollout import transfers
from ngrpo.rollout.slots import MixingSlots, RequestSettings

VOCABULARY = 12


class Recorded(Strategy):
    """A strategy whose candidates are recorded."""

    k = 2

    def decide(self, step):
        logits, candidates = step.scaled_logits.topk(2)
        return Decision(step.sampled, candidates, logits.softmax(-1))


def make(device: str, slots: int) -> MixingSlots:
    made = MixingSlots(torch.device(device), slots)
    made.set_index(torch.zeros(VOCABULARY, 4, dtype=torch.long), torch.ones(VOCABULARY).bool(), None)
    made.add_strategy(0, Neighbor(3))
    made.add_strategy(1, Recorded())
    return made


def settings(number: int, **values) -> RequestSettings:
    return RequestSettings(
        f"r{number}", **({"seed": number, "temperature": 0.5, "top_p": 1.0, "max_tokens": 4} | values)
    )


class Operations(TorchDispatchMode):
    """Counts operations, and keeps what is copied from one device to another."""

    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()
        self.copies: list[tuple[str, str, bool]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.__name__.partition(".")[0]
        self.count[name] += 1
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if source.device != result.device:
                self.copies.append((source.device.type, result.device.type, waits))
        return result


def instructions(work) -> int:
    """Python instructions that the module of the slots executes for a piece of work."""
    count = 0

    def trace(frame, event, _argument):
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("what", ["join", "finish", "take"])
def test_what_a_request_takes_does_not_depend_on_how_many_run(what):
    def each(requests: int) -> float:
        slots = make("cpu", 2 * requests)
        numbers = range(requests)
        steps = {
            "join": lambda: [slots.add(str(i), settings(i, rate=0.5, strategy=i % 2, top_p=0.9)) for i in numbers],
            "finish": lambda: [slots.finish([str(i)]) for i in numbers],
            "take": lambda: [slots.take([f"r{i}"]) for i in numbers],
        }
        # Records may be taken before the engine has told of the end.
        counts = {name: instructions(work) for name, work in steps.items() if (what, name) != ("take", "finish")}
        return counts[what] / requests

    few, many = each(8), each(128)
    assert few > 10, "nothing was counted"
    assert many < 1.3 * few


def test_requests_that_join_together_take_one_copy_and_no_more_operations_than_one_request():
    counts = []
    for requests in (1, 30):
        slots = make("meta", 64)
        slots.add("first", settings(999, rate=0.5, strategy=0))
        with Operations() as operations:
            joined = slots.join([(str(i), settings(i, rate=0.5, strategy=0)) for i in range(requests)])
        assert len(set(joined)) == requests
        assert operations.copies == [("cpu", "meta", False)]
        counts.append(sum(operations.count.values()))
    assert counts[1] <= counts[0] <= 40


def test_settings_arrive_as_they_were_given():
    slots = make("cpu", 2)
    given = [
        settings(i, seed=2**63 - 1 - i, rate=0.1 * i, temperature=0.7 + i, top_p=0.95, strategy=0) for i in range(3)
    ]
    rows = slots.join([(each.name, each) for each in given])
    tables = slots._tables
    assert tables.seed[rows].tolist() == [each.seed for each in given]
    assert tables.rate[rows].tolist() == [each.rate for each in given]
    for name in ("temperature", "top_p"):
        assert torch.equal(getattr(tables, name)[rows], torch.tensor([getattr(each, name) for each in given]))
    assert tables.strategy[rows].tolist() == [0, 0, 0]
    assert slots.join([(given[1].name, given[1])]) == rows[1:2], "one that comes back keeps its slot"


def test_nothing_waits_for_the_device_until_records_are_taken():
    """A meta tensor has no values: whatever asks for one, or copies one to the host, is an error."""
    slots = make("meta", 2)
    number = 0
    with Operations() as operations:
        for step in range(4):
            # More than there are slots, so that records leave, and the tables grow.
            joined = [
                (str(number + i), settings(number + i, rate=0.5, strategy=i % 2, max_tokens=4 + step)) for i in range(3)
            ]
            number += 3
            rows = torch.tensor(slots.join(joined)).to("meta", non_blocking=True)
            positions, emits = torch.zeros_like(rows), torch.ones_like(rows).bool()
            slots.decide(torch.empty(3, VOCABULARY, device="meta"), rows, positions, emits)
            table = torch.empty(VOCABULARY, 8, device="meta")
            slots.mix(lambda ids, table=table: table[ids], torch.empty(3, 8, device="meta"), rows, positions)
            slots.finish([request for request, _ in joined])
    assert operations.copies, "nothing was counted"
    assert {(source, waits) for source, _, waits in operations.copies} == {("cpu", False)}
    assert len(slots.take([f"r{i}" for i in range(number)])) == number


def test_mixing_ends_with_the_last_request_that_mixes():
    slots = make("cpu", 8)
    slots.join([("a", settings(0, rate=0.5, strategy=0)), ("b", settings(1, rate=0.5, strategy=0)), ("c", settings(2))])
    slots.add("d", settings(3, rate=0.0, strategy=1))
    assert slots.mixing
    slots.finish(["a", "a", "c"])
    assert slots.mixing
    slots.take(["r1"])
    assert not slots.mixing
    slots.add("e", settings(4, rate=0.5, strategy=1))
    assert slots.mixing


def test_records_survive_that_their_slots_are_given_to_others():
    slots = make("cpu", 1)
    for number in range(5):
        (row,) = slots.join([(str(number), settings(number, rate=1.0, strategy=0, max_tokens=2))])
        logits = torch.zeros(1, VOCABULARY)
        logits[0, number] = 9.0
        slots.decide(logits, torch.tensor([row]), torch.tensor([number % 2]), torch.tensor([True]))
        slots.finish([str(number)])
    records = slots.take([f"r{number}" for number in range(5)])
    assert [record.mixed.tolist() for record in records] == [[n % 2 == 0, n % 2 == 1] for n in range(5)]
    assert slots._tables.slots == 1, "a slot whose request has ended is given again"


class _Stream:
    """Stands in for a CUDA stream, and tells in which order it was used."""

    device = torch.device("cpu")

    def __init__(self, log):
        self.log = log

    def wait_stream(self, stream):
        self.log.append(f"waits for {stream}")

    def record_event(self):
        self.log.append("event")
        return self

    def synchronize(self):
        self.log.append("host waits")

    def __enter__(self):
        self.log.append("copies")

    def __exit__(self, *_):
        self.log.append("main goes on")


def test_records_leave_on_a_stream_of_their_own_and_the_host_waits_when_it_takes_them(monkeypatch):
    log = []
    stream, empty = _Stream(log), torch.empty
    monkeypatch.setattr(transfers.torch.cuda, "current_stream", lambda _device: "main")
    monkeypatch.setattr(transfers.torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(
        transfers.torch,
        "empty",
        lambda *size, pin_memory, **how: log.append(f"pinned {pin_memory}") or empty(*size, **how),
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, used: log.append(f"kept for {used is stream}"))
    copies = transfers.ToHost([torch.arange(3)], stream)
    begun = ["waits for main", "copies", "pinned True", "event", "main goes on", "kept for True"]
    assert log == begun
    assert copies.wait()[0].tolist() == [0, 1, 2]
    assert log == [*begun, "host waits"]


def test_what_goes_to_a_gpu_is_pinned_before_it_is_copied(monkeypatch):
    log = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: log.append("pinned") or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda _tensor, device, non_blocking: log.append((str(device), non_blocking))
    )
    transfers.to_device(torch.arange(3), torch.device("cuda"))
    transfers.to_device(torch.arange(3), torch.device("cpu"))
    assert log == ["pinned", ("cuda", True), ("cpu", True)]
