"""Training on preempted machines: each try begins in an empty directory and resumes from object storage."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_training import CONFIG, INPUTS, SCORED, SELECTION, start, weights, write_inputs

from forks import Script
from ngrpo.errors import StoreError
from ngrpo.storage import checkpoint_store
from ngrpo.storage.checkpoint_store import CheckpointStore, Part
from ngrpo.storage.manifest import Reference
from ngrpo.storage.objects import ObjectStore

pytestmark = pytest.mark.pipeline

KILLS = int(os.environ.get("NGRPO_TEST_KILLS", "1"))
PLACE = "checkpoints/stage/key"
IN_POD = """
from ngrpo.stages.step import execute
names = ("dataset", "neighbor_index", "warm_start")
execute(
    "ngrpo_training",
    config_json=(root / "config.json").read_text(),
    key=os.environ["KEY"],
    code_version="c0",
    inputs={name: str(root / f"{name}.json") for name in names},
    output=str(Path(os.environ["NGRPO_WORK_DIR"]).with_name("reference.json")),
    metrics=str(Path(os.environ["NGRPO_WORK_DIR"]).with_name("metrics.json")),
)
"""


class Pods:
    """Starts tries of one stage, each in an empty directory."""

    def __init__(self, root: Path, store: str, script: str):
        self._root = root
        self._store = store
        self._script = script
        self._count = 0

    def start(self, key: str, slow: float = 0.0, **variables: str) -> tuple[Script, Path]:
        self._count += 1
        pod = self._root / f"pod-{self._count}"
        variables |= {"NGRPO_STORE": self._store, "KEY": key}
        variables |= {"NGRPO_WORK_DIR": f"{pod}/work", "NGRPO_CACHE_DIR": f"{pod}/cache"}
        process = start(self._script, self._root, slow, pod.with_suffix(".log"), **variables)
        return process, pod / "reference.json"


def stop(
    process: Script, number: signal.Signals, after: int, once: Callable[[], bool] = lambda: True
) -> tuple[int, int]:
    """Send a signal some steps after the first, once something is so; return how many steps were resumed from, and made in the end."""
    resumed, made, first = 0, 0, None
    for line in process.stdout:
        if found := re.match(r"resuming from checkpoint-(\d+)", line):
            resumed = int(found[1])
        if found := re.match(r"at (\d+)", line):
            made = int(found[1])
            first = made if first is None else first
            if made >= first + after and once():
                break
    time.sleep(random.uniform(0, 0.4))
    process.send_signal(number)
    rest = re.findall(r"^at (\d+)", process.communicate()[0], re.MULTILINE)
    return resumed, max([made, *map(int, rest)]) + 1


def uploaded(objects: ObjectStore) -> set[int]:
    """The steps of the whole checkpoints in object storage."""
    return {int(key.split("/")[3][:9]) for key in objects.list("checkpoints/") if key.endswith("/manifest.json")}


@pytest.fixture
def pods(objects, store, tmp_path) -> Callable[..., Pods]:
    """Pods that train for so many steps, with scores for their checkpoints or without; their inputs are in the store."""

    def prepared(steps: int, scores: dict[int, int] | None = None, save_steps: int = 2) -> Pods:
        write_inputs(tmp_path)
        for name in INPUTS:
            published = store.publish(name, "k", tmp_path / name, config_digest="", code_version="", inputs={})
            published.write(tmp_path / f"{name}.json")
        config = {**CONFIG, "training": CONFIG["training"] | {"steps": steps, "save_steps": save_steps}}
        if scores is not None:
            config["training"]["selection"] = SELECTION
            (tmp_path / "scores.json").write_text(json.dumps(scores))
        (tmp_path / "config.json").write_text(json.dumps(config))
        return Pods(tmp_path, objects.uri, IN_POD if scores is None else SCORED + IN_POD)

    return prepared


def test_training_that_is_killed_goes_on_elsewhere_to_the_same_bytes(pods, objects, store, tmp_path):
    steps = 12 + 4 * (KILLS - 1)
    # The best checkpoint comes early: it must still be kept after newer ones, and be uploaded with them.
    pods = pods(steps, scores={step: 3 if step == 4 else 1 for step in range(1, steps + 1)})

    process, reference = pods.start("whole")
    process.communicate()
    assert process.returncode == 0
    whole = store.fetch(Reference.read(reference))

    resumed = []
    for kill in range(KILLS):
        process, _ = pods.start("killed", slow=0.3)
        after = random.randint(2 if kill == 0 else 0, 4)
        resumed.append(stop(process, signal.SIGKILL, after, once=lambda: max(uploaded(objects), default=0) >= 4)[0])
        assert process.returncode == -signal.SIGKILL
    process, reference = pods.start("killed", slow=0.15)
    at, made = stop(process, signal.SIGTERM, after=0)
    assert process.returncode == os.EX_TEMPFAIL
    assert not reference.exists()
    resumed.append(at)
    process, reference = pods.start("killed")
    output = process.communicate()[0]
    assert process.returncode == 0
    assert f"resuming from checkpoint-{made}\n" in output, "at SIGTERM it saves"
    assert resumed == sorted(resumed)
    assert 0 < resumed[-1] < made < steps

    ended = store.fetch(Reference.read(reference))
    assert weights(ended) == weights(whole) != weights(tmp_path / "warm_start")
    assert json.loads((ended / "metrics.json").read_text())["selected_step"] == 4
    for name in ("rollout_samples.json", "anchor_cosine_histogram.json", "example_neighbors.json"):
        assert (ended / name).read_bytes() == (whole / name).read_bytes()
    histories = [json.loads((one / "log_history.json").read_text()) for one in (ended, whole)]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
    assert losses[0] == losses[1]
    assert len(losses[0]) == steps
    assert len([entry for entry in histories[0] if "eval_mean" in entry]) >= steps // 2
    assert objects.list("checkpoints/") == [], "a finished stage leaves no checkpoint behind"


# `make test` has two nodes that are stopped together and go on (test_two_nodes.py).
@pytest.mark.long
def test_the_processes_of_a_pod_are_stopped_together_and_go_on_elsewhere(pods, objects, store, tmp_path):
    pods = pods(14, save_steps=14)
    # By their own clocks they would save at different steps, and wait for each other for ever.
    process, reference = pods.start("k", NGRPO_PROCESSES="2", NGRPO_SAVE_MINUTES="0.001")
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == os.EX_TEMPFAIL
    assert not reference.exists()
    assert "Traceback" not in (tmp_path / "pod-1.log").read_text()
    assert len(uploaded(objects)) == 2, "one by time, one at SIGTERM"
    saved = {key.split("/")[-1] for key in objects.list("checkpoints/")}
    assert {"complete", "manifest.json", "rng_state_0.pth", "rng_state_1.pth"} <= saved
    process, reference = pods.start("k", NGRPO_PROCESSES="2")
    output = process.communicate()[0]
    assert process.returncode == 0
    assert output.count("resuming from checkpoint-") == 1
    ended = store.fetch(Reference.read(reference))
    history = json.loads((ended / "log_history.json").read_text())
    assert [entry["step"] for entry in history] == list(range(1, 15))
    assert objects.list("checkpoints/") == []


# `make test` has the same of processes that import nothing (test_stage_faults.py).
@pytest.mark.long
def test_what_a_process_of_a_pod_cannot_do_is_one_clear_line(pods, tmp_path):
    pods = pods(24)
    config = json.loads((tmp_path / "config.json").read_text())
    config["training"]["micro_batch_size"] = 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    process, _ = pods.start("k", NGRPO_PROCESSES="2")
    process.communicate()
    assert process.returncode == 1
    log = (tmp_path / "pod-1.log").read_text()
    said = "training.prompts_per_batch=8 x rollout.group_size=4 = 32 sequences cannot be shared by 2 processes"
    assert log.splitlines()[-1].startswith(said)
    assert log.count(said) == 1, "by the stage, not by each of its processes"
    assert "Traceback" not in log
    assert "ChildFailedError" not in log


@pytest.fixture
def checkpoints(objects, tmp_path) -> CheckpointStore:
    return CheckpointStore(objects, PLACE, tmp_path / "downloads", waits=(0.05, 0.1))


def put(checkpoints: CheckpointStore, directory: Path, *steps: int, best: int | None = None) -> None:
    for step in steps:
        path = directory / f"saved-{step}"
        path.mkdir(exist_ok=True)
        (path / "weights").write_bytes(b"%d" % step * 1000)
        (path / "complete").touch()
        checkpoints.put(step, path, Part(f"{random.getrandbits(32):08x}"), keep=2, best=best)


def names(checkpoints: CheckpointStore) -> list[str]:
    """The names of the saves that are whole, newest first."""
    return checkpoint_store._sorted(checkpoints._saves())[0]


def restored(checkpoints: CheckpointStore, directory: Path, after: int = 0) -> list[str]:
    checkpoints.restore(directory, after=after)
    return sorted(path.name for path in directory.glob("*"))


def test_the_newest_are_kept_and_the_newest_is_restored(objects, checkpoints, tmp_path):
    put(checkpoints, tmp_path, 5, 95, 100)
    assert len(names(checkpoints)) == 2
    assert restored(checkpoints, tmp_path / "here", after=100) == []
    (tmp_path / "here" / "checkpoint-100").mkdir(parents=True)
    (tmp_path / "here" / "checkpoint-100" / "half").write_bytes(b"left by a killed save")
    assert restored(checkpoints, tmp_path / "here", after=99) == ["checkpoint-100"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "here" / "checkpoint-100").iterdir()}
    assert files == {"weights": b"100" * 1000, "complete": b""}
    assert not (tmp_path / "downloads").exists()
    objects.put_bytes(b"x", f"{PLACE}-of-another/000000001-x/weights")
    checkpoints.clear()
    assert objects.list("checkpoints/") == [f"{PLACE}-of-another/000000001-x/weights"]


def test_the_best_is_kept_and_restored_by_itself(checkpoints, tmp_path):
    put(checkpoints, tmp_path, 5, 10, 15, 20, best=10)
    assert [int(one[:9]) for one in names(checkpoints)] == [20, 15, 10]
    checkpoints.restore(tmp_path / "here", after=9, until=10)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize("damage", ["content", "missing", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(objects, checkpoints, tmp_path, capsys, damage):
    put(checkpoints, tmp_path, 4, 8)
    name = f"{PLACE}/{names(checkpoints)[0]}"
    if damage == "content":
        objects.put_bytes(b"9" * 1000, f"{name}/0of1/weights")
    elif damage == "missing":
        objects.delete(f"{name}/0of1/weights")
    else:
        objects.put_bytes(b"{", f"{name}/0of1/manifest.json")
    assert restored(checkpoints, tmp_path / "here") == ["checkpoint-4"]
    assert "checkpoint of step 8: damaged in object storage" in capsys.readouterr().out
    assert objects.list(f"{name}/"), "it stays until a newer one is whole"
    put(checkpoints, tmp_path, 6)
    assert [int(one[:9]) for one in names(checkpoints)] == [6, 4], "a damaged one must not count as one that is kept"
    assert not objects.list(f"{name}/")


def test_a_checkpoint_whose_upload_was_killed_is_not_restored(objects, checkpoints, tmp_path):
    put(checkpoints, tmp_path, 4)
    objects.put_bytes(b"half", f"{PLACE}/000000008-0/0of1/weights")
    assert restored(checkpoints, tmp_path / "here") == ["checkpoint-4"]
    put(checkpoints, tmp_path, 6)
    assert objects.list(f"{PLACE}/000000008-0/"), "perhaps a process that runs elsewhere is uploading it"
    put(checkpoints, tmp_path, 8, 10)
    assert objects.list(f"{PLACE}/000000008-0/"), "of the same step as one that is kept"
    put(checkpoints, tmp_path, 12)
    assert not objects.list(f"{PLACE}/000000008-0/")


def test_a_checkpoint_is_whole_once_every_node_has_uploaded_its_part(objects, checkpoints, tmp_path, capsys):
    put(checkpoints, tmp_path, 4)
    for node in (1, 0):
        path = tmp_path / f"node-{node}"
        (path / "of_node").mkdir(parents=True)
        (path / "of_node" / f"weights-{node}").write_bytes(b"%d" % node * 1000)
        (path / "complete").write_text("both")
        assert restored(checkpoints, tmp_path / "here") == ["checkpoint-4"]
        checkpoints.put(8, path, Part("ab", node, 2), keep=1, best=None)
    assert [int(name[:9]) for name in names(checkpoints)] == [8], "the first node deletes"
    checkpoints.restore(tmp_path / "only", after=0, only=("complete",))
    assert [path.name for path in (tmp_path / "only" / "checkpoint-8").iterdir()] == ["complete"]
    assert restored(checkpoints, tmp_path / "there") == ["checkpoint-8"]
    whole = tmp_path / "there" / "checkpoint-8"
    found = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert found == {"complete": b"both"} | {f"of_node/weights-{node}": b"%d" % node * 1000 for node in (0, 1)}
    objects.put_bytes(b"x" * 1000, f"{PLACE}/000000008-ab/1of2/of_node/weights-1")
    assert restored(checkpoints, tmp_path / "nowhere") == []
    assert "checkpoint of step 8: damaged in object storage (of_node/weights-1" in capsys.readouterr().out


def test_a_service_that_is_down_is_no_damage(checkpoints, tmp_path, monkeypatch):
    put(checkpoints, tmp_path, 4)

    def down(*arguments: object) -> None:
        raise StoreError("cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "get_file", down)
        with pytest.raises(StoreError, match="cannot be reached"):
            restored(checkpoints, tmp_path / "here")
    assert restored(checkpoints, tmp_path / "here") == ["checkpoint-4"]
