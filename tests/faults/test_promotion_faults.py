"""Promotions that grade the champion again and are killed before any of their writes; damage of every kind, through the commands."""

import json
import os
import signal
import time
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from damage import damaged
from measuring import OLD, measured
from ngrpo.stages.model_promotion import decide_and_crown
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import ModelRegistry
from ngrpo.tracking.promotions import Promotions
from ngrpo_kfp.pipelines.cli import app as cli
from promoting import NAME, decide, in_process, kill_before, settings, state

pytestmark = pytest.mark.pipeline
pytest_plugins = ["mlflow_database"]


@pytest.fixture
def promotions(database, objects, store, tmp_path, monkeypatch):
    """Version 1 is the champion, by other graders; version 2 has not met it, and beats it by either measure."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    MlflowClient().create_experiment("ngrpo", str(tmp_path / "artifacts"))
    decide(measured(tmp_path, store, "first", 1, 2, grader=OLD), tmp_path / "output")
    decide(measured(tmp_path, store, "second", 4), tmp_path / "output", min_gain=90.0)
    return Promotions.in_store(objects.uri, NAME)


def put_to_the_gate(killed_before: int | None) -> None:
    if killed_before is not None:
        kill_before(killed_before)
    store = ObjectStore(f"{os.environ['NGRPO_STORE']}/promotions")
    promotions = Promotions(ModelRegistry(NAME), store, lease_seconds=10.0)
    version = promotions.registry.version("2")
    evaluation = json.loads(promotions.registry.evaluation(version))
    decide_and_crown(settings().promotion, promotions, version, evaluation, 0)


def test_a_promotion_that_grades_again_may_be_killed_before_any_of_its_writes(promotions, monkeypatch):
    hurried = SimpleNamespace(monotonic=lambda: 20 * time.monotonic(), sleep=time.sleep)
    monkeypatch.setattr("ngrpo.storage.lease.time", hurried)
    registry, store = promotions.registry, ObjectStore(f"{promotions.artifacts}/promotions")
    lock, challenged = store.get_bytes(f"{NAME}/lock.json"), {"champion": "1", "challenger": "2"}
    crowned = {"champion": "2", "previous_champion": "1"}
    decided = []
    for write in range(40):
        code = in_process(put_to_the_gate, write)
        decided.append(json.loads(store.get_bytes(f"{NAME}/lock.json"))["state"]["sequence"] == 3)
        with promotions.turn():
            pass
        found = {alias: number for alias, number in state(registry).items() if alias != "candidate"}
        assert found == (crowned if decided[-1] else challenged), f"killed before write {write}"
        assert len(promotions.history()) == 2 + decided[-1]
        # Whoever comes next finishes it, with the same evidence.
        assert in_process(put_to_the_gate, None) == 0
        assert state(registry) == crowned
        (entry,) = promotions.history()[2:]
        assert entry["comparison"]["graded_again"] == {"the champion": {"samples": 80, "changed": 40}}
        if code == 0:
            break
        assert code == -signal.SIGKILL
        for alias, number in (("previous_champion", None), ("champion", "1"), ("challenger", "2")):
            registry.set_alias(alias, number)
        store.put_bytes(lock, f"{NAME}/lock.json")
        store.delete(f"{NAME}/history/00000003.json")
    print(f"killed before each of {len(decided) - 1} writes; after {sum(decided)} of them it had decided")
    assert code == 0, "it never got to its end"
    assert 0 < sum(decided) < len(decided)


def test_damaged_state_of_every_kind_is_one_line_of_each_command(promotions, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "200")
    store, before = ObjectStore(f"{promotions.artifacts}/promotions"), state(promotions.registry)
    (champion,) = [
        path
        for path in (tmp_path / "artifacts" / "models").rglob("evaluation.json")
        if OLD.encode() in path.read_bytes()
    ]

    def place(path, data):
        if isinstance(path, str):
            store.put_bytes(data, path)
        else:
            path.write_bytes(data)

    codes = {"history": 0, "rollback": 2, "promote": 2}
    cases = (
        (f"{NAME}/lock.json", ("history", "rollback", "promote")),
        (f"{NAME}/history/00000001.json", ("history", "rollback")),
        (champion, ("history", "promote")),
    )
    done = 0
    for path, commands in cases:
        good = store.get_bytes(path) if isinstance(path, str) else path.read_bytes()
        for name, data in damaged(good):
            if " is " in name or name in (
                "without protocols",
                "without weights",
                "without answers",
                "without statistics",
            ):
                continue
            place(path, data)
            for command in commands:
                arguments = {"history": (), "rollback": ("why not",), "promote": ("2",)}[command]
                capsys.readouterr()
                code = cli.main([command, *arguments, "--preset", "tiny", "--set", f"promotion.model_name={NAME}"])
                output = capsys.readouterr()
                kept = path == champion and command == "promote"
                assert code == (0 if kept else codes[command]), (path, name, command)
                assert output.err.count("\n") <= 1, output.err
                assert "Traceback" not in output.out + output.err
                assert "kept: the evaluation of the champion, version 1: damaged" in output.out or not kept
                done += 1
            assert state(promotions.registry) == before, (path, name)
        place(path, good)
    print(f"{done} commands on damaged state")
