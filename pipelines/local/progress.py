"""What the user sees while a run goes on: a line for each node, with the last word of the one at work."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.stage_records import read_record
from ngrpo_kfp.pipelines.planning.nodes import Plan

_TAIL_BYTES = 4096
_POLL_SECONDS = 0.25
_PLAIN_SECONDS = 15.0
_SYMBOLS = {"cached": "[green]✓", "done": "[green]✓", "running": "[cyan]▶", "failed": "[red]✗", "waiting": "[dim]·"}


@dataclass(frozen=True)
class NodeState:
    """What the files of a run say about a node at a moment."""

    name: str
    state: str
    """`cached`, `waiting`, `running`, `done` or `failed`."""
    seconds: float | None = None
    word: str = ""
    """The last line that its stage printed."""


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty; a progress bar's refreshes count as lines."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace").replace("\r", "\n")
    lines = ["".join(character for character in line if character.isprintable()).strip() for line in text.split("\n")]
    return next((line for line in reversed(lines) if line), "")


class StageProgress:
    """Follows a run's files while the context is open; a table on a terminal, plain lines elsewhere."""

    def __init__(self, plan: Plan, run_directory: Path, console: Console):
        self._plan = plan
        self._run = run_directory
        self._console = console
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def states(self) -> list[NodeState]:
        """Read the state of every node, in order."""
        return [
            NodeState(node.name, "cached") if node.cached else replace(self._state(node.worker.name), name=node.name)
            for node in self._plan
        ]

    def _state(self, name: str) -> NodeState:
        try:
            record = read_record(self._run, name)
        except DamagedStateError as error:  # the run raises it once its stages have ended
            return NodeState(name, "failed", word=str(error))
        if record is None:
            return NodeState(name, "waiting")
        if "seconds" in record:
            return NodeState(name, "failed" if "error" in record else "done", record["seconds"])
        since = (self._run / "stages" / f"{name}.json").stat().st_mtime
        return NodeState(name, "running", max(0.0, time.time() - since), last_line(self._run / "logs" / f"{name}.log"))

    def _follow(self) -> None:
        if self._console.is_terminal:
            # The runner's own messages are sent elsewhere by replacing standard output: leave that alone.
            with Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
                while not self._closed.wait(_POLL_SECONDS):
                    live.update(_table(self.states()), refresh=True)
                live.update(_table(self.states()), refresh=True)
            return
        shown: dict[str, NodeState] = {}
        told = time.monotonic()
        closing = False
        while not closing:
            closing = self._closed.wait(_POLL_SECONDS)
            for state in self.states():
                before = shown.get(state.name, NodeState(state.name, "waiting"))
                news = state.state != before.state
                if not news and state.word != before.word and time.monotonic() - told > _PLAIN_SECONDS:
                    news = True
                if news:
                    shown[state.name] = state
                    told = time.monotonic()
                    self._console.print(_plain(state), markup=False, highlight=False, soft_wrap=True)


def _table(states: list[NodeState]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    for state in states:
        seconds = f"{state.seconds:.1f} s" if state.seconds is not None else "cached" if state.state == "cached" else ""
        table.add_row(_SYMBOLS[state.state], state.name, seconds, state.word.replace("[", "\\["))
    return table


def _plain(state: NodeState) -> str:
    seconds = f" {state.seconds:.1f} s" if state.seconds is not None and state.state != "running" else ""
    return f"{state.name}: {state.state}{seconds}{f'  {state.word}' if state.word else ''}"
