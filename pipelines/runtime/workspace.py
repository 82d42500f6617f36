"""The workspace: the directory in which one machine keeps its store, its caches and its runs."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.plan import History

_STAMP = "%Y%m%d-%H%M%S-%f"
_STAMP_LENGTH = len("20260131-235959-123456")


@dataclass(frozen=True)
class Workspace:
    """Layout of the directory; nothing is made before it is used."""

    root: Path

    @classmethod
    def from_environment(cls) -> Workspace:
        """Return the workspace `NGRPO_HOME`, by default `outputs` in the current directory."""
        return cls(Path(os.environ.get("NGRPO_HOME") or "outputs").absolute())

    @property
    def store(self) -> Path:
        """Data of the embedded object store."""
        return self.root / "store"

    @property
    def database(self) -> Path:
        """The MLflow database."""
        return self.root / "mlflow.db"

    @property
    def cache(self) -> Path:
        """Verified downloads from the artifact store."""
        return self.root / "cache"

    @property
    def work(self) -> Path:
        """Unfinished results, `<stage>/<key>/`."""
        return self.root / "work"

    @property
    def runs(self) -> Path:
        """One directory a run."""
        return self.root / "runs"

    @property
    def latest(self) -> Path:
        """Link to the directory of the last run that finished: what it shows is whole, whatever failed since."""
        return self.root / "latest"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of this workspace.

        Raises:
            ConfigError: Another run holds the lock, or the workspace cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"workspace {self.root} cannot be made: {error.strerror}; set NGRPO_HOME to another directory"
            ) from error
        # The kernel releases the lock when its holder ends, however it ends: there are no stale locks.
        with self._lock_file.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise ConfigError(
                    f"workspace {self.root} is in use by another run (process {file.read().strip()}): wait for it to end, "
                    "or set NGRPO_HOME to another directory"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def wait_until_idle(self) -> None:
        """Return when no run holds the lock."""
        with self._lock_file.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    @property
    def _lock_file(self) -> Path:
        return self.root / "run.lock"

    def run_name(self, preset: str) -> str:
        """Return a new name for a run of a preset. Names of runs sort by time."""
        return f"{datetime.now(UTC):{_STAMP}}-{preset}"

    def new_run(self, name: str) -> Path:
        """Make the directory of a run."""
        directory = self.runs / name
        directory.mkdir(parents=True)
        return directory

    def set_latest(self, run: Path) -> None:
        """Let `latest` show a run."""
        link = self.root / "latest.new"
        link.unlink(missing_ok=True)
        link.symlink_to(run.relative_to(self.root))
        link.replace(self.latest)

    def history(self, preset: str) -> History:
        """Return what the last run of a preset recorded, whether it finished or not."""
        runs = [run for run in self.runs.glob("*") if run.name[_STAMP_LENGTH:] == f"-{preset}"]
        for run in sorted(runs, reverse=True):
            plan = run / "plan.json"
            if plan.exists():
                stages = json.loads(plan.read_text(encoding="utf-8"))
                finished = {
                    name for name, stage in stages.items() if stage["cached"] or "artifact" in _record(run, name)
                }
                return History(stages, frozenset(finished))
        return History()

    def rerun_tokens(self) -> dict[str, str]:
        """Return the rerun token of each result that was asked for again, by the key it would have without one."""
        path = self.root / "rerun_tokens.json"
        tokens: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return tokens

    def set_rerun_token(self, base_key: str, token: str) -> None:
        """Ask for a result again. The token stays, so that later runs find the new result and not the old one."""
        write_json(self.root / "rerun_tokens.json", self.rerun_tokens() | {base_key: token})


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _record(run: Path, stage: str) -> dict[str, Any]:
    path = run / "stages" / f"{stage}.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record
