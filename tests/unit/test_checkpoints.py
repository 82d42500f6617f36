"""Which checkpoint a training goes on from when some are damaged."""

import json
import math
import shutil
import threading
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from ngrpo.environment import SAVE_MINUTES
from ngrpo.errors import ConfigError
from ngrpo.stages.surroundings import save_minutes
from ngrpo.storage.checkpoint_store import Part
from ngrpo.training import checkpointing as module
from ngrpo.training.checkpoint_size import checkpoint_bytes, checkpoints_bytes
from ngrpo.training.checkpointing import Checkpoints
from ngrpo.training.marker import MARKER, mark, problem, settled


def write(work: Path, *steps: int, best: int | None = None) -> None:
    """Write whole checkpoints; from the step of the best on they remember it."""
    for step in steps:
        path = work / "checkpoints" / f"checkpoint-{step}"
        (path / "neighbor_index").mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"%d" % step * 500)
        (path / "optimizer.pt").write_bytes(b"%d" % step * 1000)
        (path / "neighbor_index" / "index.json").write_text("{}")
        remembered = best if best is not None and best <= step else None
        TrainerState(global_step=step, best_global_step=remembered).save_to_json(str(path / "trainer_state.json"))
        mark(path, settled(path))


def restore(work: Path, steps: int = 8) -> str | None:
    checkpoints = Checkpoints(work, None, steps, 1)
    checkpoints.restore()
    return None if checkpoints.resumed_from is None else Path(checkpoints.resumed_from).name


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewrite_marker(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "truncated": lambda path: (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes()[:-1]),
    "empty": lambda path: (path / "optimizer.pt").write_bytes(b""),
    "one bit": lambda path: flip_a_bit(path / "optimizer.pt"),
    "one bit below": lambda path: flip_a_bit(path / "neighbor_index" / "index.json"),
    "missing": lambda path: (path / "optimizer.pt").unlink(),
    "added": lambda path: (path / "pytorch_model.bin").touch(),
    "marker of another version": lambda path: rewrite_marker(path / MARKER, version=2),
    "marker of zero bytes": lambda path: (path / MARKER).write_bytes(b""),
    "marker cut": lambda path: (path / MARKER).write_bytes((path / MARKER).read_bytes()[:-20]),
    "marker no JSON": lambda path: (path / MARKER).write_bytes(b"\xff\xfe"),
    "marker of another type": lambda path: rewrite_marker(path / MARKER, files=["optimizer.pt"]),
    "marker missing": lambda path: (path / MARKER).unlink(),
    "marker a directory": lambda path: ((path / MARKER).unlink(), (path / MARKER).mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_that_is_said(tmp_path, capsys, damage):
    write(tmp_path, 2, 4)
    DAMAGES[damage](tmp_path / "checkpoints" / "checkpoint-4")
    assert restore(tmp_path) == "checkpoint-2"
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["checkpoint-4 is not used", "resuming from checkpoint-2"]
    assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["checkpoint-4"], "it is not deleted yet"


def test_the_newest_whole_one_is_resumed_from(tmp_path, capsys):
    write(tmp_path, 2, 4)
    assert restore(tmp_path) == "checkpoint-4"
    assert capsys.readouterr().out == "resuming from checkpoint-4\n"


def test_a_checkpoint_beyond_the_last_step_is_not_used(tmp_path):
    write(tmp_path, 2, 3, 4)
    assert restore(tmp_path, steps=3) == "checkpoint-3"


def test_a_checkpoint_stands_with_the_best_of_its_time(tmp_path, capsys):
    write(tmp_path, 2, 4, 6, 8, best=4)
    flip_a_bit(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert restore(tmp_path) == "checkpoint-2", "the best is trained again: what comes out is the same"
    assert "checkpoint-8 is not used: the best of its time, checkpoint-4, is lost" in capsys.readouterr().out


def save(checkpoints: Checkpoints, work: Path, step: int, best: int | None = None) -> None:
    """Save as a trainer does."""
    path = work / "checkpoints" / f"checkpoint-{step}"
    (path / "neighbor_index").mkdir(parents=True)
    (path / "neighbor_index" / "index.json").write_text("{}")
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        (path / name).write_bytes(b"%d" % step * 500)
    state = TrainerState(global_step=step, best_global_step=best)
    state.save_to_json(str(path / "trainer_state.json"))
    checkpoints.on_save(TrainingArguments(output_dir=str(work)), state, TrainerControl())


def test_what_is_sound_is_deleted_only_after_its_successors_are_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, None, 100, 1)
    here = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        save(checkpoints, tmp_path, step, best=2)
    assert sorted(path.name for path in here.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]

    def killed(checkpoint: Path, files: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "mark", killed)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, tmp_path, 8, best=2)
    assert len(list(here.iterdir())) == 4
    again = Checkpoints(tmp_path, None, 100, 1)
    again.restore()
    assert Path(again.resumed_from).name == "checkpoint-6"
    save(again, tmp_path, 8, best=8)
    assert sorted(path.name for path in here.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    assert not list((tmp_path / "set_aside").iterdir()), "the unfinished one has a successor"
    assert problem(here / "checkpoint-8") is None


def test_a_policy_that_is_the_best_is_saved_wherever_it_is_measured(tmp_path):
    checkpoints = Checkpoints(tmp_path, None, 100, 1)
    arguments = TrainingArguments(output_dir=str(tmp_path))
    for step in (2, 4):
        save(checkpoints, tmp_path, step, best=2)

    def asked(measured: float, best: float | None) -> bool:
        control, state = TrainerControl(), TrainerState(global_step=6, best_global_step=2, best_metric=best)
        checkpoints.on_evaluate(arguments, state, control, {"eval_mean": measured})
        return control.should_save

    assert not asked(0.5, 0.5)
    assert not asked(0.4, 0.5)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert asked(0.0, None), "the first is the best so far"
    assert asked(0.6, 0.5)
    here = tmp_path / "checkpoints"
    assert {path.name: len(contents(path)) for path in here.iterdir()} == {"checkpoint-2": 2, "checkpoint-4": 7}, (
        "there is room for a third before it is written"
    )


def contents(checkpoint: Path) -> list[str]:
    return sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())


def test_of_the_best_only_the_weights_are_kept_and_it_is_not_gone_on_from(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, None, 100, 1)
    here = tmp_path / "checkpoints"
    for step in (2, 4):
        save(checkpoints, tmp_path, step, best=2)
    assert len(contents(here / "checkpoint-2")) == 7, "one of the newest is whole"
    save(checkpoints, tmp_path, 6, best=2)
    assert contents(here / "checkpoint-2") == ["complete", "model.safetensors"]
    assert problem(here / "checkpoint-2", weights_alone=True) is None
    assert restore(tmp_path) == "checkpoint-6"
    for step in (4, 6):
        flip_a_bit(here / f"checkpoint-{step}" / "optimizer.pt")
    assert restore(tmp_path) is None
    said = capsys.readouterr().out
    assert "checkpoint-2 is not used: only its weights were kept" in said
    assert "checkpoint-4 is not used: the content of optimizer.pt was changed" in said


def test_a_best_that_a_kill_left_half_deleted_is_still_the_best(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, None, 100, 1)
    for step in (2, 4):
        save(checkpoints, tmp_path, step, best=2)
    deleted, unlink = [], Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "checkpoint-2":
            if len(deleted) == 2:
                raise KeyboardInterrupt
            deleted.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, tmp_path, 6, best=2)
    assert deleted[0] == "trainer_state.json"
    assert restore(tmp_path) == "checkpoint-6"
    again = Checkpoints(tmp_path, None, 100, 1)
    save(again, tmp_path, 8, best=2)
    assert contents(tmp_path / "checkpoints" / "checkpoint-2") == ["complete", "model.safetensors"]


def test_room_is_made_before_a_save_and_one_whole_checkpoint_stays_meanwhile(tmp_path):
    checkpoints = Checkpoints(tmp_path, None, 100, 1)
    here = tmp_path / "checkpoints"
    for step in (2, 4, 6):
        save(checkpoints, tmp_path, step, best=2)
    state = TrainerState(global_step=8, max_steps=100, best_global_step=2)
    for should_save, left in ((False, {2, 4, 6}), (True, {2, 6})):
        checkpoints.on_step_end(
            TrainingArguments(output_dir=str(tmp_path)), state, TrainerControl(should_save=should_save)
        )
        assert {int(path.name.removeprefix("checkpoint-")) for path in here.iterdir()} == left
    assert contents(here / "checkpoint-2") == ["complete", "model.safetensors"]
    assert problem(here / "checkpoint-6") is None


def test_the_parts_of_two_nodes_are_one_checkpoint(tmp_path, monkeypatch):
    """Each node has the files of its processes; the marker of both has all of them, and object storage gets both parts."""
    uploads = []

    class Uploads:
        def put(self, step: int, directory: Path, part: Part, *, keep: int, best: int | None) -> None:
            uploads.append((step, contents(directory), part))

    files = {}
    for node in (0, 1):  # so that each can be told what the other has
        (tmp_path / f"{node}").mkdir()
        (tmp_path / f"{node}" / f"weights-{node}-of-2.pt").write_bytes(b"%d" % node * 500)
        files |= settled(tmp_path / f"{node}")
    for node in (0, 1):
        arguments = TrainingArguments(output_dir=str(tmp_path))
        told = iter([[(True, "aaaa"), (True, "bbbb")], [files]])
        monkeypatch.setattr(module, "gather_object", lambda own, told=told: next(told))
        monkeypatch.setitem(module.PartialState._shared_state, "process_index", node)
        work = tmp_path / f"node-{node}"
        checkpoints = Checkpoints(work, Uploads(), 100, 1)
        shutil.copytree(tmp_path / f"{node}", work / "checkpoints" / "checkpoint-4")
        checkpoints.on_save(arguments, TrainerState(global_step=4), TrainerControl())
        checkpoints.finish_upload()
        own = f"weights-{node}-of-2.pt"
        assert uploads.pop() == (4, ["complete", own], Part("aaaa", node, 2))
        assert problem(work / "checkpoints" / "checkpoint-4") == f"weights-{1 - node}-of-2.pt is missing"
        shutil.copy(tmp_path / f"{1 - node}" / f"weights-{1 - node}-of-2.pt", work / "checkpoints" / "checkpoint-4")
        assert problem(work / "checkpoints" / "checkpoint-4") is None


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_node_makes_room_for_the_whole_checkpoint_that_comes_from_object_storage(tmp_path, monkeypatch, nodes):
    work, stored = tmp_path / "work", tmp_path / "stored"
    write(work, 2, 4)
    write(stored, 6)
    monkeypatch.setattr(module, "gather_object", lambda own: own * nodes)
    Checkpoints(work, Store(stored / "checkpoints"), 8, 1).restore()
    left = {path.name for path in (work / "checkpoints").iterdir()}
    assert left == ({"checkpoint-6"} if nodes == 2 else {"checkpoint-2", "checkpoint-4", "checkpoint-6"})


def test_the_size_of_checkpoints_is_computed():
    assert checkpoint_bytes(1000) == 12_000
    assert checkpoint_bytes(1000, weights_alone=True) == 4_000
    assert checkpoints_bytes(1000) == 24_000, "two that are whole, while the second is written"
    assert checkpoints_bytes(1000, selection=True) == 28_000
    assert checkpoints_bytes(1000, nodes=4, selection=True) == 12_000 + 3_000 + 4_000


def test_nodes_go_on_from_a_checkpoint_that_all_have(tmp_path, monkeypatch, capsys):
    write(tmp_path, 2, 4)
    other = [2, 2]  # another node has the older one alone, each time that all are asked
    monkeypatch.setattr(module, "gather_object", lambda own: [*own, other.pop()])
    assert restore(tmp_path) == "checkpoint-2"
    assert "checkpoint-4 is not used: not every node has it" in capsys.readouterr().out
    assert not other


class Store:
    """Stands for the checkpoints in object storage."""

    def __init__(self, directory: Path):
        self._directory = directory

    def restore(
        self, directory: Path, *, after: int, until: float = math.inf, only: tuple[str, ...] | None = None
    ) -> None:
        steps = [int(path.name.rpartition("-")[2]) for path in self._directory.iterdir()]
        wanted = max((step for step in steps if after < step <= until), default=None)
        if wanted is not None:
            stored, target = (where / f"checkpoint-{wanted}" for where in (self._directory, directory))
            shutil.copytree(stored, target)
            for path in target.iterdir():
                if only is not None and not path.name.startswith(only):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_what_is_damaged_here_comes_from_object_storage_and_what_is_damaged_there_is_passed_over(tmp_path):
    work, stored = tmp_path / "work", tmp_path / "stored"
    write(work, 2, 4, best=2)
    write(stored, 2, 4, 6, best=2)
    flip_a_bit(stored / "checkpoints" / "checkpoint-6" / "optimizer.pt")  # before it was uploaded
    for step in (2, 4):
        flip_a_bit(work / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
    checkpoints = Checkpoints(work, Store(stored / "checkpoints"), 8, 1)
    checkpoints.restore()
    assert Path(checkpoints.resumed_from).name == "checkpoint-4"
    assert problem(work / "checkpoints" / "checkpoint-4") is None
    assert contents(work / "checkpoints" / "checkpoint-2") == ["complete", "model.safetensors"], "the best of its time"
    assert problem(work / "checkpoints" / "checkpoint-2", weights_alone=True) is None


class Clock:
    """Stands for the time, in seconds."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class SlowStore:
    """Stands for object storage: an upload ends when it is let to."""

    def __init__(self):
        self.done = threading.Event()

    def put(self, step: int, directory: Path, part: Part, *, keep: int, best: int | None) -> None:
        assert self.done.wait(30)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def saves(checkpoints: Checkpoints, work: Path, step: int, *, by_steps: bool = False, first: bool = True) -> bool:
    """Make a step and save if the callback, or the trainer by itself, says so; return whether it was saved."""
    state = TrainerState(global_step=step, max_steps=100, is_world_process_zero=first)
    control = TrainerControl(should_save=by_steps)
    checkpoints.on_step_end(TrainingArguments(output_dir=str(work)), state, control)
    assert not control.should_evaluate, "it cannot be selected"
    assert not control.should_training_stop
    if control.should_save:
        save(checkpoints, work, step)
    return control.should_save


def test_it_saves_by_time_where_a_resumed_run_is_exact(tmp_path, clock):
    checkpoints = Checkpoints(tmp_path, None, 100, stride=2, minutes=10)
    clock.now += 599
    assert not saves(checkpoints, tmp_path, 2)
    clock.now += 2
    assert not saves(checkpoints, tmp_path, 3), "in the middle of a rollout batch"
    assert saves(checkpoints, tmp_path, 4)
    clock.now += 599
    assert not saves(checkpoints, tmp_path, 6)
    assert saves(checkpoints, tmp_path, 8, by_steps=True)
    clock.now += 599
    assert not saves(checkpoints, tmp_path, 10), "ten minutes since the last save, whatever it was made for"
    clock.now += 2
    assert not saves(checkpoints, tmp_path, 12, first=False), "the clock of one process is that of all"
    assert saves(checkpoints, tmp_path, 12)
    clock.now += 10_000
    assert not saves(Checkpoints(tmp_path, None, 100, stride=1), tmp_path, 14), "not asked for"


def test_it_does_not_wait_for_an_upload_to_save_by_time(tmp_path, clock):
    store = SlowStore()
    checkpoints = Checkpoints(tmp_path, store, 100, stride=1, minutes=1)
    clock.now += 61
    assert saves(checkpoints, tmp_path, 1)
    clock.now += 61
    assert not saves(checkpoints, tmp_path, 2)
    store.done.set()
    checkpoints.finish_upload()
    assert saves(checkpoints, tmp_path, 3)
    checkpoints.finish_upload()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "ten", "10m"])
def test_a_time_that_is_none_is_one_clear_line(monkeypatch, value):
    monkeypatch.setenv(SAVE_MINUTES, value)
    with pytest.raises(
        ConfigError, match=rf"^NGRPO_SAVE_MINUTES='{value}': not a positive number of minutes; set it to"
    ):
        save_minutes()
