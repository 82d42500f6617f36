"""Stages as forks of one process that has imported everything: a try starts at once, and may be killed at any moment.

Run as a script, this is that process: it reads one job per line (written by `Stages.start`), forks, and reports how the fork ended.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ngrpo.stages.declarations import STAGES
from ngrpo.stages.supervision import QUIET

TESTS = Path(__file__).parents[1]
PRESET = Path(__file__).with_name("small.toml")
SETTINGS = (
    "data.benchmarks.validation.kind=arithmetic",
    "data.benchmarks.validation.size=3",
    "data.benchmarks.validation.fold=selection",
    "training.steps=4",
    "training.save_steps=2",
    "training.learning_rate=1e-3",
    "warm_start.steps=5",
    "warm_start.save_steps=2",
    "warm_start.batch_size=4",
    "warm_start.micro_batch_size=4",
)
INPUTS = {name: stage.inputs for name, stage in STAGES.items()}
SELECTION = (
    "training.selection.benchmark=validation",
    "training.selection.samples=2",
)
"""Settings with which the best checkpoint is the result: the first, because a random model solves nothing."""


@dataclass
class Stages:
    """Runs stages of the small preset in forks; `root`, `store` and `environment` may be changed between two tries."""

    root: Path
    store: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Stages":
        environment = {
            **os.environ,
            **QUIET,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(TESTS),
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.pop("MLFLOW_RUN_ID", None)
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()

    def run(
        self,
        stage: str,
        key: str,
        inputs: Mapping[str, str],
        *,
        settings: tuple[str, ...] = (),
        kill_at: int | str | None = None,
        kill_after: float | None = None,
    ) -> int:
        """Run a stage to its end or to its death, and return its exit code.

        Args:
            stage: Name of the stage.
            key: Key of its result.
            inputs: By input, the key of the artifact.
            settings: Of the run, besides `SETTINGS`.
            kill_at: Kill it at this write, counted from 0 from when it begins to save its last checkpoint; or when it first
                calls this method of `ObjectStore` from then on.
            kill_after: Kill it after so many seconds.
        """
        references = {}
        for name, producer in INPUTS[stage].items():
            references[name] = str(self.root / f"{producer}-{inputs[name]}.json")
        job = {
            "stage": stage,
            "settings": [*SETTINGS, *settings],
            "key": key,
            "inputs": references,
            "output": str(self.root / f"{stage}-{key}.json"),
            "environment": {
                "NGRPO_WORK_DIR": str(self.root / "work"),
                "NGRPO_CACHE_DIR": str(self.root / "cache"),
                "NGRPO_STORE": self.store,
                **self.environment,
            },
            "root": str(self.root),
            "log": str(self.root / f"{stage}-{key}.log"),
            "kill_at": kill_at,
        }
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        timer = threading.Timer(kill_after, _kill, [pid]) if kill_after is not None else None
        if timer is not None:
            timer.start()
        code = int(self._server.stdout.readline())
        if timer is not None:
            timer.cancel()
        return code

    def writes(self, stage: str, key: str) -> int:
        """Return the writes of the last try after its last checkpoint began to be saved; see `kill_at`."""
        return int(re.findall(r"^writes: (\d+)$", self.log(stage, key), re.MULTILINE)[-1])

    def log(self, stage: str, key: str) -> str:
        """Return the output of all tries of a stage."""
        return (self.root / f"{stage}-{key}.log").read_text()


def keys(stage: str, key: str) -> dict[str, str]:
    """Return the keys of a stage's inputs where all have the same."""
    return dict.fromkeys(INPUTS[stage], key)


def content(artifact: Path) -> dict[str, object]:
    """Return the files of an artifact, without timings."""
    return {
        path.relative_to(artifact).as_posix(): _timeless(json.loads(path.read_bytes()))
        if path.name in ("log_history.json", "metrics.json")
        else path.read_bytes()
        for path in sorted(artifact.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def _timeless(tree: object) -> object:
    if isinstance(tree, list):
        return [_timeless(one) for one in tree]
    return {name: value for name, value in tree.items() if not name.endswith(("step_time", "seconds"))}


def _kill(pid: int) -> None:
    """Kill a fork and what it has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# --- the process that forks ----------------------------------------------------------------------------------------------


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_everything()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _fork(json.loads(line))
        answers.write(f"{pid}\n")
        answers.flush()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _kill(pid)  # what it has left
        answers.write(f"{code}\n")
        answers.flush()


def _import_everything() -> None:
    import importlib

    from ngrpo.checking.light_imports import import_transformers

    import_transformers()
    from ngrpo.training import policy_optimization
    from rewards import LengthReward

    for stage in STAGES.values():
        importlib.import_module(stage.module)
    for name in (
        "ngrpo.stages.execution",
        "ngrpo.stages.step",
        "ngrpo.tracking.cluster_parent_run",
        "ngrpo.tracking.database",
        "mlflow.store.model_registry.sqlalchemy_store",
        "mlflow.store.tracking.sqlalchemy_store",
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2",
    ):
        importlib.import_module(name)
    policy_optimization.CorrectnessReward = LengthReward


def _fork(job: dict) -> None:
    """Run the stage in this process."""
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.environ.update(job["environment"])
        os.chdir(job["root"])
        writes = _Writes(job["kill_at"])
        _watch(writes)
        from ngrpo.config import load_config, select
        from ngrpo.stages.keys import config_json
        from ngrpo.stages.step import execute

        section = select(load_config(PRESET, job["settings"]), STAGES[job["stage"]].config)
        execute(
            job["stage"],
            config_json=config_json(section),
            key=job["key"],
            code_version="c0",
            inputs=job["inputs"],
            output=job["output"],
            metrics=f"{job['output']}.metrics",
        )
        code = 0
        print(f"writes: {writes.count}")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Writes:
    """Kills this process at a write (of a file, a directory or an object) after it began to save its last checkpoint."""

    def __init__(self, kill_at: int | str | None):
        self.count = 0
        self.counting = False
        self._kill_at = kill_at

    def __call__(self, method: str = "") -> None:
        if self.counting:
            if self._kill_at in (self.count, method):
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def _watch(write: _Writes) -> None:
    """Count every write."""
    from transformers import Trainer

    from ngrpo.storage.objects import ObjectStore
    from ngrpo.training.checkpointing import Checkpoints

    def audit(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if (
                isinstance(path, int)
                or not flags & (os.O_WRONLY | os.O_RDWR)
                or str(path).startswith(("/dev", "/proc"))
            ):
                return
            write()
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            write()

    def watched(name):
        method = getattr(ObjectStore, name)

        def call(*arguments, **keywords):
            write(name)
            result = method(*arguments, **keywords)
            write()
            return result

        return call

    def armed(self, *arguments, **keywords):
        if self.state.global_step >= self.state.max_steps:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, Checkpoints):
                    callback.finish_upload()  # of an earlier checkpoint: what is counted is the same each time
            write.counting = True
        return save(self, *arguments, **keywords)

    save, Trainer._save_checkpoint = Trainer._save_checkpoint, armed
    for name in ("put_file", "put_bytes", "delete"):
        setattr(ObjectStore, name, watched(name))
    sys.addaudithook(audit)


if __name__ == "__main__":
    _serve()
