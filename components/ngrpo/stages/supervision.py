"""Tries of a stage inside its pod: a child process does the work, and is started again after a failure.

Whether Kubeflow retries a failed step depends on the installation: KFP 2.17 ships Argo with `retryPolicy: OnError`, which retries only
lost pods, and its pipelines cannot change that. So failures are retried here, and lost pods by Argo.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from ngrpo.config.cluster import RetryConfig
from ngrpo.environment import redacted
from ngrpo.errors import Preempted, StoreError
from ngrpo.stages.surroundings import ERROR_FILE, REASON
from ngrpo.stages.tries import Outcome, Try, begin, begin_line, end_line, keep
from ngrpo.storage.objects import ObjectStore

NEVER_AGAIN = 2
"""Exit code of a child whose settings are wrong, so that another try would fail too."""
QUIET: Mapping[str, str] = {
    # Logs are not terminals: every refresh of a progress bar would stay in them. The first variable is for tqdm itself; two libraries
    # have their own. They are read when a library is imported.
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Threads that spin while they wait slow a small machine tenfold as soon as anything else runs on it.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}
"""Environment of every process of a stage."""

_KEEP_SECONDS = 60.0
_STORE_PATIENCE = 10.0
"""Longest delay by the record of a try, in seconds, if the store is out of reach."""
_RELAY_SECONDS = 30.0
"""Seconds to wait for the remaining output of a try that has ended."""
_LONGEST_LOG = 8 << 20
"""Bytes that are kept of the end of a try's log."""


def supervise(
    command: list[str],
    *,
    stage: str,
    key: str,
    stdin: str,
    retry: RetryConfig,
    store: str,
    pipeline_run: str | None,
    scratch: Path,
) -> None:
    """Run a command, and retry it after a failure; forward its output, and record every try.

    Args:
        command: The command. Its exit code is 0, `NEVER_AGAIN`, or any other after a failure that may be temporary.
        stage: Name of the stage, for records and messages.
        key: Key of its result.
        stdin: Input of the command.
        retry: Number of retries, and the wait before them.
        store: Where the records go; if it is out of reach, that is logged and the work goes on.
        pipeline_run: Id of the pipeline run.
        scratch: Directory for the log of the current try.

    Raises:
        SystemExit: The last try failed; the message is the stage's own line, and exit code 1.
        Preempted: SIGTERM arrived and was passed on, and the command has ended.
    """
    records = _Records(store)
    of, wait = retry.times + 1, float(retry.backoff_seconds)
    for number in range(1, of + 1):
        attempt = begin(stage, key, pipeline_run=pipeline_run, pod=_pod(), number=number, of=of)
        child = _Child(command, stdin, attempt, records, scratch)
        ended = child.run()
        again = ended.outcome == "failed" and number < of and child.code != NEVER_AGAIN
        print(end_line(ended, f"; the next try begins in {wait:g} s" if again else ""), flush=True)
        if ended.outcome == "succeeded":
            return
        if ended.outcome == "stopped":
            raise Preempted
        if not again:
            sys.exit(f"{stage}: {ended.error}")
        time.sleep(wait)
        wait *= retry.backoff_factor


class _Records:
    """Destination of records. Errors of the store are logged, not raised: they must not cost a try."""

    def __init__(self, store: str):
        self._store = store
        self._objects: ObjectStore | None = None

    def keep(self, attempt: Try, log: bytes | None = None) -> None:
        try:
            if self._objects is None:
                self._objects = ObjectStore(self._store, patience=_STORE_PATIENCE)
            keep(self._objects, attempt, log)
        except StoreError as error:
            print(f"{attempt.stage}: the record of this try is not kept: {redacted(str(error))}", file=sys.stderr)


class _Child:
    """One try, as a child process."""

    def __init__(self, command: list[str], stdin: str, attempt: Try, records: _Records, scratch: Path):
        self._command = command
        self._stdin = stdin
        self._attempt = attempt
        self._records = records
        self._scratch = scratch
        self._stopped = False
        self._last = ""
        self.code: int | None = None

    def run(self) -> Try:
        """Run it to its end, and return its record."""
        print(begin_line(self._attempt), flush=True)
        self._scratch.mkdir(parents=True, exist_ok=True)
        log, said = self._scratch / "try.log", self._scratch / "error.txt"
        reason = said.with_name(said.name + REASON)
        for left in (said, reason):
            left.unlink(missing_ok=True)
        started = time.monotonic()
        self._records.keep(self._attempt, b"")
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**_environment(), ERROR_FILE: str(said)},
            )

            def stop(number: int, frame: FrameType | None) -> None:
                self._stopped = True
                process.send_signal(signal.SIGTERM)

            before = signal.signal(signal.SIGTERM, stop)
            relay = threading.Thread(target=self._relay, args=(process, file), name="relay", daemon=True)
            relay.start()
            try:
                self._wait(process, log)
            finally:
                signal.signal(signal.SIGTERM, before)
            with suppress(ProcessLookupError):
                # Leftover processes would hold memory that the next try needs.
                os.killpg(process.pid, signal.SIGKILL)
            relay.join(_RELAY_SECONDS)
        self.code = process.returncode
        ended = replace(
            self._attempt,
            seconds=round(time.monotonic() - started, 3),
            outcome=self._outcome(),
            error=self._why(said) if self.code else None,
            reason=self._reason(reason) if self.code else None,
        )
        self._records.keep(ended, _end_of(log))
        return ended

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        while True:
            try:
                process.wait(_KEEP_SECONDS)
                return
            except subprocess.TimeoutExpired:
                self._records.keep(self._attempt, _end_of(log))

    def _relay(self, process: subprocess.Popen[bytes], file: BinaryIO) -> None:
        """Give the child its input, and forward its output line by line, without credentials."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it ended before reading: exit code and last line say why
            process.stdin.write(self._stdin.encode())
            process.stdin.close()
        for line in process.stdout:
            text = redacted(line.decode(errors="replace"))
            sys.stdout.write(text)
            sys.stdout.flush()
            file.write(text.encode())
            file.flush()
            self._last = text.strip() or self._last

    def _outcome(self) -> Outcome:
        if self.code == 0:
            return "succeeded"
        return "stopped" if self._stopped else "failed"

    def _why(self, said: Path) -> str:
        """Return why the child failed: its own error line, or the last line of its output."""
        if said.exists():
            return said.read_text(encoding="utf-8").strip()
        return f"{self._how()}; its last words: {self._last or 'none'}"

    def _reason(self, told: Path) -> str:
        """Return why the child failed, without its output, which may quote data that must not leave the cluster."""
        return told.read_text(encoding="utf-8") if told.exists() else self._how()

    def _how(self) -> str:
        code = self.code or 0
        return (
            f"killed by {signal.Signals(-code).name}, for want of memory perhaps" if code < 0 else f"exit code {code}"
        )


def _pod() -> str:
    # A host name has at most 63 characters, fewer than names of Argo's pods.
    return os.environ.get("KFP_POD_NAME") or socket.gethostname()


def _environment() -> dict[str, str]:
    # kfp's client cannot be imported in a process that is marked as a component (kfp 2.17).
    return {name: value for name, value in os.environ.items() if name != "_KFP_RUNTIME"} | dict(QUIET)


def _end_of(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LONGEST_LOG))
        return file.read()
