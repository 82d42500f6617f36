"""Promotions by real processes that race and are killed, rollback, and the history that all of it leaves."""

import json
import os
import random
import signal
import time
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from forks import fork
from ngrpo.errors import StoreError, TrackingError
from ngrpo.stages.model_promotion import decide_and_crown
from ngrpo.storage.digest import model_digest
from ngrpo.storage.lease import Lease, LeaseLostError, hold
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import ALIASES, ModelRegistry
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from promoting import NAME, PROBLEMS, TOO_SLOW, evaluation_of, in_process, put_to_the_gate, settings, state

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]
KILLED = -signal.SIGKILL


@pytest.fixture
def promotions(database, objects, tmp_path, monkeypatch):
    """Five versions; that of a number solves so many samples more than 2 of every problem."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    client = MlflowClient()
    client.create_experiment("ngrpo", str(tmp_path / "artifacts"))
    for number in range(1, 6):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "weights").write_text(f"{number}")
        (tmp_path / "manifest.json").write_text(json.dumps({"files": {"model/weights": {"size": 1}}}))
        registry = ModelRegistry(NAME)
        digest = model_digest(tmp_path / "model")
        (tmp_path / "evaluation.json").write_text(json.dumps(evaluation_of(skill(number), weights=digest)))
        version = registry.register(tmp_path / "model", tmp_path / "manifest.json", digest=digest, tags={})
        registry.add_evaluation(version, tmp_path / "evaluation.json", f"evaluation-{number}")
    return Promotions(registry, ObjectStore(f"{objects.uri}/promotions"), lease_seconds=60.0)


def skill(number: int) -> list[int]:
    return [2 + number] * PROBLEMS


def gate(promotions, number: int, **options) -> dict:
    version = promotions.registry.version(str(number))
    return decide_and_crown(settings().promotion, promotions, version, evaluation_of(skill(number)), 0, **options)


# --- the lock -----------------------------------------------------------------------------------------------------------


def test_a_lease_excludes_and_is_taken_over_when_its_time_is_up(objects):
    with hold(objects, "lock", seconds=0.6) as first:
        first.write({"done": 1})
        with pytest.raises(StoreError, match=r"lock: .*:\d+ holds this lock, after 0 seconds"):
            Lease(objects, "lock", 0.6).acquire(patience=0.2)
        with hold(objects, "lock", seconds=30.0) as second:  # waits as long as the first asked for
            assert second.state == {"done": 1}
            with pytest.raises(LeaseLostError, match="too slow"):
                first.require()
            with pytest.raises(LeaseLostError, match="too slow"):
                first.write({"done": 2})
            second.require()
            second.write({"done": 3})
    with hold(objects, "lock") as third:
        assert third.state == {"done": 3}, "what came too late changed nothing"


def test_no_clock_of_another_machine_is_asked(objects, monkeypatch):
    """A holder whose clock is years off neither loses its lock nor blocks others for ever."""
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 4e9)
        holder = Lease(objects, "lock", 1.0)
        holder.acquire(patience=1.0)
    with pytest.raises(StoreError, match="holds this lock"):
        Lease(objects, "lock", 1.0).acquire(patience=0.3)
    holder.release()
    Lease(objects, "lock", 1.0).acquire(patience=0.0)


def test_a_holder_that_slept_through_its_time_knows_it(objects, monkeypatch):
    """While a machine sleeps, monotonic clocks stand still."""
    slept = 0.0
    clock = SimpleNamespace(
        CLOCK_BOOTTIME=7, clock_gettime=lambda _: slept, monotonic=lambda: 0.0, time=lambda: 4e9, sleep=time.sleep
    )
    monkeypatch.setattr("ngrpo.storage.lease.time", clock)
    with hold(objects, "lock", seconds=60.0) as lease:
        lease.require()
        slept = 61.0
        with pytest.raises(LeaseLostError, match="too slow"):
            lease.require()


def test_a_write_whose_answer_was_lost_counts(objects, monkeypatch):
    swap = ObjectStore.swap

    def sent_twice(self, *arguments):
        swap(self, *arguments)
        return swap(self, *arguments)

    monkeypatch.setattr(ObjectStore, "swap", sent_twice)
    with hold(objects, "lock") as lease:
        lease.write({"done": 1})
        lease.write({"done": 2})
    with hold(objects, "lock") as lease:
        assert lease.state == {"done": 2}


# --- kills and races ----------------------------------------------------------------------------------------------------


def test_a_promotion_that_is_killed_before_any_of_its_writes_is_undone_or_finished(promotions, objects, monkeypatch):
    """The promotion of version 2 is killed at every write; the next promotion starts from a consistent state."""
    # Here time runs faster: the lock of a process that was killed is soon over.
    hurried = SimpleNamespace(monotonic=lambda: 20 * time.monotonic(), sleep=time.sleep)
    monkeypatch.setattr("ngrpo.storage.lease.time", hurried)
    gate(promotions, 1)
    store, registry = ObjectStore(f"{objects.uri}/promotions"), promotions.registry
    before, after = {"champion": "1"}, {"champion": "2", "previous_champion": "1"}
    lock = store.get_bytes(f"{NAME}/lock.json")
    seen = []
    for write in range(30):
        code = in_process(put_to_the_gate, "2", skill(2), 10.0, write)
        decided = json.loads(store.get_bytes(f"{NAME}/lock.json"))["state"]["sequence"] == 2
        left = state(registry)
        with promotions.turn():
            pass
        repaired = {alias: number for alias, number in state(registry).items() if alias != "candidate"}
        assert repaired == (after if decided else before), f"killed before write {write}, which left {left}"
        assert [entry["version"] for entry in promotions.history()] == (["1", "2"] if decided else ["1"])
        assert registry.version("2").tags.get("ngrpo.decision") == ("promoted" if decided else None)
        seen.append((decided, left))
        if code == 0:
            break
        assert code == -9
        # Back to where it started.
        for alias in ("candidate", "previous_champion"):
            registry.set_alias(alias, None)
        registry.set_alias("champion", "1")
        for tag in ("decision", "reason", "comparison") if decided else ():
            MlflowClient().delete_model_version_tag(NAME, "2", f"ngrpo.{tag}")
        store.put_bytes(lock, f"{NAME}/lock.json")
        store.delete(f"{NAME}/history/00000002.json")
    print(
        f"killed before each of {len(seen) - 1} writes; after {sum(decided for decided, _ in seen)} of them it had decided"
    )
    assert code == 0, "it never got to its end"
    partly = [left for decided, left in seen if decided and left not in (before, after)]
    assert partly, "no kill fell between two aliases: nothing was put to the test"


def race(promotions, numbers, kills, lease_seconds: float) -> Counter:
    """Promote versions at the same time, each in its own process, some of which are killed; count the exit codes.

    Those that were killed, or lost the lock because they were slow, try again. In the end the best version is champion, nothing dangles,
    and nothing is lost.
    """
    ends: Counter = Counter()
    waiting = dict.fromkeys(numbers) | kills
    while waiting:
        processes = {
            number: fork(put_to_the_gate, str(number), skill(number), lease_seconds, kill)
            for number, kill in waiting.items()
        }
        for process in processes.values():
            process.join(120)
        ends.update(process.exitcode for process in processes.values())
        waiting = dict.fromkeys(number for number, process in processes.items() if process.exitcode)
    assert set(ends) <= {0, KILLED, TOO_SLOW}
    aliases, history = state(promotions.registry), promotions.history()
    assert aliases["champion"] == str(max(numbers))
    assert "candidate" not in aliases
    assert [entry["sequence"] for entry in history] == list(range(1, len(history) + 1))
    crowned = [int(entry["version"]) for entry in history if entry["decision"] == "promoted"]
    assert crowned == sorted(set(crowned)), "the champion only ever got better"
    assert {entry["version"] for entry in history} == {str(number) for number in numbers}, "no decision was lost"
    assert aliases.get("previous_champion") == (str(crowned[-2]) if len(crowned) > 1 else None)
    for entry, following in pairwise(history):
        assert entry["after"] | {"candidate": None} == following["before"]
    return ends


def test_racing_promoters_leave_the_best_as_champion(promotions):
    """Five versions at once, two of them killed on the way."""
    order = random.Random(5).sample(range(1, 6), 5)
    assert race(promotions, order, {3: 6, 5: 9}, lease_seconds=5.0)[KILLED] == 2


@pytest.mark.skipif("NGRPO_RACES" not in os.environ, reason="10 seconds a race: set NGRPO_RACES to a number of races")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("quarter", range(4))
def test_many_races(promotions, objects, quarter):
    """Three of the versions at once, one killed at random inside its turn, again and again from the start.

    A race mostly waits for locks of the killed: `--numprocesses 4` runs the four quarters side by side.
    """
    store, began, ends = ObjectStore(f"{objects.uri}/promotions"), time.monotonic(), Counter()
    races = int(os.environ["NGRPO_RACES"]) // 4
    random_ = random.Random(quarter)
    for _ in range(races):
        numbers = random_.sample(range(1, 6), 3)
        ends += race(promotions, numbers, {random_.choice(numbers): random_.randrange(1, 14)}, lease_seconds=3.0)
        for alias in ALIASES:
            promotions.registry.set_alias(alias, None)
        for key in store.list():
            store.delete(key)
        MlflowClient().delete_registered_model_tag(NAME, "ngrpo.promotions")
    seconds = time.monotonic() - began
    print(f"{races} races of 3 processes: {ends[KILLED]} killed, {ends[TOO_SLOW]} lost the lock, {seconds:.0f} s")


def test_an_error_on_the_way_leaves_the_rest_to_the_next_promotion(promotions, monkeypatch):
    gate(promotions, 1)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "set_tags", _refuse)
        with pytest.raises(TrackingError, match="database is locked"):
            gate(promotions, 2)
    assert state(promotions.registry) == {"champion": "1", "candidate": "2"}
    decision = gate(promotions, 3)  # at once: an error, unlike a kill, gives the lock back
    assert decision["champion_version"] == 2
    assert state(promotions.registry) == {"champion": "3", "previous_champion": "2"}


def _refuse(*arguments):
    raise TrackingError("database is locked")


def test_a_version_deleted_in_the_middle_is_named_by_no_alias(promotions, monkeypatch):
    gate(promotions, 1)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, "set_tags", _refuse)
        with pytest.raises(TrackingError):
            gate(promotions, 2)
    MlflowClient().delete_model_version(NAME, "2")
    with promotions.turn():
        pass
    assert state(promotions.registry) == {"previous_champion": "1"}


# --- by hand ------------------------------------------------------------------------------------------------------------


def test_a_rollback_restores_exactly_what_was_before_and_may_be_repeated(promotions):
    states = [state(promotions.registry)]
    for number in (1, 2, 4):
        gate(promotions, number)
        states.append(state(promotions.registry))
    gate(promotions, 3)
    assert state(promotions.registry) == states[3] | {"challenger": "3"}
    for before in (states[2], states[1], states[0]):
        entry = promotions.rollback("it was a mistake")
        assert state(promotions.registry) == before
        tags = promotions.registry.version(entry["version"]).tags
        assert (tags["ngrpo.decision"], tags["ngrpo.reason"]) == ("rolled_back", "it was a mistake")
    with pytest.raises(TrackingError, match="nothing to roll back"):
        promotions.rollback("once too often")
    decisions = [(entry["version"], entry["decision"]) for entry in promotions.history()]
    assert decisions == [
        ("1", "promoted"),
        ("2", "promoted"),
        ("4", "promoted"),
        ("3", "kept"),
        ("4", "rolled_back"),
        ("2", "rolled_back"),
        ("1", "rolled_back"),
    ]


def test_what_was_rolled_back_comes_back_by_hand_alone(promotions):
    gate(promotions, 1)
    gate(promotions, 2)
    promotions.rollback("it answers in verse")
    for _ in range(2):
        decision = gate(promotions, 2)
        assert decision["decision"] == "kept"
        assert "version 2 was rolled back" in decision["reason"]
    decision = gate(promotions, 2, override="prose again")
    assert (decision["decision"], decision["reason"]) == ("promoted", "by hand: prose again")
    assert state(promotions.registry) == {"champion": "2", "previous_champion": "1"}
    gate(promotions, 3)
    assert gate(promotions, 2)["reason"].startswith("mean@8"), "it is free again"


def test_a_rollback_is_refused_where_it_would_lead_nowhere(promotions, tmp_path):
    gate(promotions, 1)
    gate(promotions, 2)
    client = MlflowClient()
    client.set_registered_model_alias(NAME, "champion", "3")
    with pytest.raises(TrackingError, match="its alias was changed by hand"):
        promotions.rollback("why not")
    client.set_registered_model_alias(NAME, "champion", "2")
    client.delete_model_version(NAME, "1")
    with pytest.raises(
        TrackingError, match=r"version 1, the champion before, cannot be champion again \(was deleted\)"
    ):
        promotions.rollback("why not")
    assert state(promotions.registry) == {"champion": "2"}


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ngrpo(promotions, capsys, tmp_path, monkeypatch):
    """Run a command and return what it says, an error beginning with `ngrpo: `."""
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> str:
        code = cli.main([*arguments, "--preset", "tiny", "--set", f"promotion.model_name={NAME}"])
        output = capsys.readouterr()
        assert (code, bool(output.err)) in ((0, False), (2, True))
        return output.out + output.err

    return command


def test_decisions_by_hand(ngrpo, promotions):
    assert "promoted: mean@8 on arithmetic is 37.50 against the warm start's 12.50" in ngrpo("promote", "1")
    assert ngrpo("promote", "3").endswith("test-model: previous_champion 1, champion 3\n")
    assert "kept: " in ngrpo("promote", "2")
    model = "model  test-model  (settings of preset tiny)\n"
    assert ngrpo("promote", "2", "--override", "shorter").startswith(f"{model}promoted: by hand: shorter\n")
    assert (
        ngrpo("rollback", "too short")
        == f"{model}rolled back: version 2\ntest-model: challenger 2, previous_champion 1, champion 3\n"
    )
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ngrpo("history").splitlines() if "│" in line]
    rows = [row for row in lines if row[0]]
    assert [[row[2], row[3], row[4]] for row in rows] == [
        ["1", "promoted", "none → 1"],
        ["3", "promoted", "1 → 3"],
        ["2", "kept", "3"],
        ["2", "promoted", "3 → 2"],
        ["2", "rolled_back", "2 → 3"],
    ]
    assert rows[-1][5] == "too short"


def test_what_cannot_be_promoted_by_hand(ngrpo, promotions, tmp_path):
    assert (
        ngrpo("promote", "9").partition("\n")[2]
        == "ngrpo: model test-model has no version 9; its versions are 5, 4, 3, 2, 1\n"
    )
    assert "nothing to roll back" in ngrpo("rollback", "why not")
    weights = sorted((tmp_path / "artifacts" / "models").rglob("weights"))
    for path in weights:
        path.write_text("x")
    assert "the weights of version 2 in the registry are not those that were evaluated" in ngrpo("promote", "2")
    assert state(promotions.registry) == {}
