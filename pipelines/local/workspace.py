"""The workspace: the directory with a machine's store, caches and runs."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ngrpo.errors import ConfigError
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.state import DamagedStateError, read_state, write_state
from ngrpo_kfp.pipelines.local.stage_records import read_plan, read_record

if TYPE_CHECKING:
    from ngrpo_kfp.pipelines.planning.nodes import History

# Importing the settings, which plans need, takes a quarter of a second, so the object store is started first.

_STAMP = "%Y%m%d-%H%M%S-%f"
_STAMP_LENGTH = len("20260131-235959-123456")
_LONGEST_ROOT = 400
"""Limit in bytes. SQLite opens no file whose path is longer than 512 bytes, and files of a run are several directories deep."""


@dataclass(frozen=True)
class Workspace:
    """Layout of the directory; nothing is created before it is used."""

    root: Path

    @classmethod
    def from_environment(cls) -> Workspace:
        """Return the workspace `NGRPO_HOME`, by default `outputs` in the current directory.

        Raises:
            ConfigError: The path cannot be that of a workspace.
        """
        try:
            root = Path(os.environ.get("NGRPO_HOME") or "outputs").absolute()
            size = len(str(root).encode())
        except UnicodeEncodeError as error:
            raise ConfigError("NGRPO_HOME: the path of the workspace is not UTF-8; name another directory") from error
        except OSError as error:
            raise ConfigError(
                f"NGRPO_HOME: the current directory is gone ({error.strerror}); go to another one"
            ) from error
        if not str(root).isprintable():
            raise ConfigError(f"NGRPO_HOME={str(root)!r}: control characters in the path; name another directory")
        if size > _LONGEST_ROOT:
            raise ConfigError(
                f"NGRPO_HOME={root}: the path has {size} bytes, and {_LONGEST_ROOT} at most leave room for the files below it; name "
                "another directory"
            )
        return cls(root)

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
    def digests(self) -> Path:
        """Digests of local files that were read (`ngrpo_kfp.pipelines.planning.content`)."""
        return self.root / "digests.json"

    @property
    def mentions(self) -> Path:
        """Cache of the names that source files mention (`ngrpo.stages.keys.mentions_kept`)."""
        return self.root / "mentions.json"

    @property
    def work(self) -> Path:
        """Unfinished results, `<stage>/<key>/`."""
        return self.root / "work"

    @property
    def runs(self) -> Path:
        """One directory for each run."""
        return self.root / "runs"

    @property
    def evaluations(self) -> Path:
        """One directory for each model that `ngrpo evaluate` measured."""
        return self.root / "evaluations"

    @property
    def experiments(self) -> Path:
        """One directory for each experiment (`ngrpo_kfp.pipelines.local.experiment_records`)."""
        return self.root / "experiments"

    @property
    def latest(self) -> Path:
        """Link to the directory of the last finished run, so that it is complete whatever failed since."""
        return self.root / "latest"

    def exists(self) -> bool:
        """Whether the workspace exists.

        Raises:
            ConfigError: The path cannot be that of a workspace.
        """
        with _explained(self.root):
            try:
                self.root.stat()
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def private(self) -> Iterator[None]:
        """Create the workspace, and keep files that this process and its children write private to the user while the context is open.

        Raises:
            ConfigError: The workspace cannot be created or used.
        """
        with _explained(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _OURS:
                _close(self.root / name)
        before = os.umask(0o077)
        try:
            yield
        finally:
            os.umask(before)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of this workspace.

        Raises:
            ConfigError: Another run holds the lock, or the workspace cannot be created.
        """
        path = self.root / "run.lock"
        # The kernel releases the lock when its holder ends, however it ends: there are no stale locks.
        lock = FileLock(path, mode=0o600, blocking=False)
        with _explained(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout as error:
                holder = "".join(filter(str.isdigit, path.read_text(encoding="utf-8", errors="replace")[:20]))
                raise ConfigError(
                    f"workspace {self.root} is in use by another run (process {holder}): wait for it to end, "
                    "or set NGRPO_HOME to another directory"
                ) from error
            path.write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            lock.release()

    def run_name(self, preset: str) -> str:
        """Return a new name for a run of a preset. Names of runs sort by time, even after the clock was set back."""
        now = datetime.now(UTC).replace(tzinfo=None)
        last = max(filter(None, map(started, self.runs.glob("*"))), default=now)
        return f"{max(now, last + timedelta(microseconds=1)):{_STAMP}}-{preset}"

    def new_run(self, name: str) -> Path:
        """Create the directory of a run.

        Raises:
            ConfigError: It cannot be created.
        """
        directory = self.runs / name
        with _explained(directory):
            directory.mkdir(mode=0o700, parents=True)
        return directory

    def set_latest(self, run: Path) -> None:
        """Point `latest` to a run.

        Raises:
            ConfigError: Something else is in the way.
        """
        link = self.root / "latest.new"
        with _explained(self.latest):
            link.unlink(missing_ok=True)
            link.symlink_to(run.relative_to(self.root))
            link.replace(self.latest)

    def history(self, preset: str) -> History:
        """Return the records of the last run of a preset, finished or not. They only explain plans, so damage is reported and ignored."""
        from ngrpo_kfp.pipelines.planning.nodes import History

        runs = [run for run in self.runs.glob("*") if run.name[_STAMP_LENGTH:] == f"-{preset}"]
        for run in sorted(runs, reverse=True):
            try:
                nodes: Mapping[str, Any] | None = read_plan(run)
            except DamagedStateError as error:
                _say_ignored(error)
                continue
            if nodes is not None:
                finished = {name for name, node in nodes.items() if node["cached"] or _has_finished(run, name)}
                return History(nodes, frozenset(finished))
        return History()

    def rerun_tokens(self) -> dict[str, str]:
        """Return the rerun token of each result that a rerun was requested for, by its key without a token.

        Raises:
            DamagedStateError: They cannot be read.
        """
        cure = "delete it: plans then find the results from before the reruns"
        return read_state(self._rerun_tokens, dict[str, str], cure=cure) or {}

    def set_rerun_token(self, base_key: str, token: str) -> None:
        """Request a rerun of a result. The token is kept, so that later runs find the new result and not the old one."""
        write_state(self._rerun_tokens, self.rerun_tokens() | {base_key: token})

    @property
    def _rerun_tokens(self) -> Path:
        return self.root / "rerun_tokens.json"


_OURS = ("store", "cache", "work", "runs", "mlflow.db", "mlflow.db.lock", "rerun_tokens.json", "run.lock", "ui.log")
"""Directories that earlier versions made readable to others."""


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn errors of the file system during a write into one line.

    Raises:
        ConfigError: The write failed.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({disk_trouble(error, path)})") from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.filename2 or error.filename or path
        raise ConfigError(
            f"workspace: {what} cannot be made: {disk_trouble(error, path)}; move away what is there, or set NGRPO_HOME to another "
            "directory"
        ) from error


def _close(path: Path) -> None:
    """Remove the rights of other users."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if status.st_uid == os.geteuid() and not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
        path.chmod(stat.S_IMODE(status.st_mode) & 0o700)


def started(run: Path) -> datetime | None:
    """Return when a run started, in UTC, by its name; None for a directory that is not a run."""
    try:
        return datetime.strptime(run.name[:_STAMP_LENGTH], _STAMP)
    except ValueError:
        return None


def _has_finished(run: Path, node: str) -> bool:
    try:
        return "artifact" in (read_record(run, node) or {})
    except DamagedStateError as error:
        _say_ignored(error)
        return False


def _say_ignored(error: DamagedStateError) -> None:
    print(f"ignored: {error}", file=sys.stderr)
