"""Stages over local directories as forks of a process that has imported libraries but no module of ngrpo, with a trace of all imports.

Run as a script, this is that process: it reads one job per line (written by `TracedStages.run`), forks, and reports how the fork ended.
"""

import builtins
import json
import os
import subprocess
import sys
import traceback
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

PRESET = Path(__file__).with_name("small.toml")
LIBRARIES = (
    "boto3",
    "datasets",
    "jinja2",
    "latex2sympy2_extended",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pyarrow.parquet",
    "sympy",
    "torch",
    "transformers.models.llama.modeling_llama",
)


class TracedStages:
    """Runs stages of the small preset in forks."""

    def __init__(self, root: Path, environment: dict[str, str]):
        """Start the process that forks, with an environment, in a directory: MLflow keeps files where it works."""
        environment = {**environment, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "TracedStages":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()

    def run(self, job: dict[str, Any]) -> None:
        """Do a job.

        Args:
            job: `call`: module, function and arguments; `log`: file for what is said; `environment`: variables besides; `trace`: file for
                what is imported, a line `importer module`; `changed`: whether transparent modules are replaced.
        """
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        assert code == 0, Path(job["log"]).read_text()


# --- the process that forks ----------------------------------------------------------------------------------------------


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import importlib

    for name in LIBRARIES:
        importlib.import_module(name)
    from trl import import_utils

    import_utils.is_vllm_available = lambda min_version=None: False
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    assert not [name for name in sys.modules if name.partition(".")[0] == "ngrpo"]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _fork(json.loads(line))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()


def _fork(job: dict[str, Any]) -> None:
    code = 1
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.environ.update(job["environment"])
        if job["changed"]:
            _change()
        else:
            recorder = _Recorder(job["trace"])
            sys.meta_path.insert(0, recorder)
            builtins.__import__ = recorder
        import importlib

        module, function, *arguments = job["call"]
        getattr(importlib.import_module(module), function)(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Recorder:
    """Writes down every import of a module of ours: who asks, and for which module, whether it is loaded already or not.

    A statement is seen as a call of `__import__`. What a library loads by name is seen when it is first looked for.
    """

    def __init__(self, path: str):
        self._path = path
        self._import = builtins.__import__
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        asker = (globals or {}).get("__name__", "")
        if asker.partition(".")[0] == "ngrpo":
            whole = resolve_name("." * level + name, globals["__package__"]) if level else name
            for each in (whole, *(f"{whole}.{one}" for one in fromlist or ())):
                self._write(asker, each)
        return self._import(name, globals, locals, fromlist, level)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename or frame.f_code is _Recorder.__call__.__code__:
            frame = frame.f_back
        self._write(frame.f_globals["__name__"], name)
        return None

    def _write(self, asker: str, name: str) -> None:
        if name.partition(".")[0] == "ngrpo" and (asker, name) not in self._seen:
            self._seen.add((asker, name))
            with open(self._path, "a") as file:
                file.write(f"{asker} {name}\n")


def _change() -> None:
    """Replace transparent modules by others that differ in everything except their contract."""
    from boto3.s3.transfer import TransferConfig

    from ngrpo import environment
    from ngrpo.report import index_facts, model_card, progress_lines, rollout_log
    from ngrpo.storage import disk, objects

    def replace(where: Any, name: str, value: Any) -> None:
        assert hasattr(where, name), f"{where} has no {name}: replace what took its place"
        setattr(where, name, value)

    class OtherLog(rollout_log.RolloutLog):
        def __call__(self, batch: Any) -> dict[str, float]:
            super().__call__(batch)
            return {"other": 1.0}

        def write(self, output: Path) -> None:
            (output / "rollout_samples.json").write_text("[]")

    def other_line(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        print("another line", flush=True)

    tiny = TransferConfig(multipart_threshold=512, multipart_chunksize=5 << 20, max_concurrency=1, io_chunksize=7)
    replace(index_facts, "describe", lambda index, tokenizer: {"other": len(index.eligible)})
    replace(index_facts, "example_neighbors", lambda index, tokenizer: [])
    replace(rollout_log, "RolloutLog", OtherLog)
    replace(progress_lines.PrintProgress, "on_log", other_line)
    replace(model_card, "model_card", lambda *arguments, **keywords: "another card")
    replace(objects, "_UPLOAD", tiny)
    replace(objects, "_DOWNLOAD", tiny)
    replace(disk, "disk_trouble", lambda *arguments: "something else")
    replace(environment, "redacted", lambda text: "hidden")


if __name__ == "__main__":
    _serve()
