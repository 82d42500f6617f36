"""Progress of a run: a line for each node, with the last line of output of the running one."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ngrpo.report.phases import longest_silence
from ngrpo.report.remaining import LEFT, duration
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.stage_records import read_record
from ngrpo_kfp.pipelines.planning.nodes import Plan

_TAIL_BYTES = 4096
_POLL_SECONDS = 0.25
_SYMBOLS = {
    "cached": "[green]✓",
    "done": "[green]✓",
    "running": "[cyan]▶",
    "failed": "[red]✗",
    "waiting": "[dim]·",
    "starting": "[cyan]…",
}
_STARTING = "process starting: importing libraries"


@dataclass(frozen=True)
class NodeState:
    """State of a node, read from the files of a run."""

    name: str
    state: str
    """`cached`, `waiting`, `starting`, `running`, `done` or `failed`."""
    seconds: float | None = None
    word: str = ""
    """The last line that its stage printed."""


def last_line(log: Path) -> str:
    """Return the last non-empty line of a log; refreshes of a progress bar count as lines."""
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
        self._since = time.monotonic()
        """Time when the last stage ended or, before the first, when waiting began."""
        self._ended = 0
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def states(self) -> list[NodeState]:
        """Read the state of every node, in order. While none runs, the first waiting one counts as starting."""
        states = [
            NodeState(node.name, "cached") if node.cached else replace(self._state(node.worker.name), name=node.name)
            for node in self._plan
        ]
        ended = sum(state.state in ("done", "failed") for state in states)
        if ended != self._ended:
            self._ended, self._since = ended, time.monotonic()
        now = [state.state for state in states]
        if "waiting" in now and "running" not in now and "failed" not in now:
            first = now.index("waiting")
            seconds = time.monotonic() - self._since
            states[first] = replace(states[first], state="starting", seconds=seconds, word=_STARTING)
        return states

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
            # The runner's messages are redirected by replacing standard output, which rich must not undo.
            with Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
                while not self._closed.wait(_POLL_SECONDS):
                    live.update(_table(self.states(), self._console.width), refresh=True)
                live.update(_table(self.states(), self._console.width), refresh=True)
            return
        shown: dict[str, NodeState] = {}
        told = time.monotonic()
        closing = False
        while not closing:
            closing = self._closed.wait(_POLL_SECONDS)
            for state in self.states():
                before = shown.get(state.name, NodeState(state.name, "waiting"))
                news = state.state != before.state and state.state not in ("starting", "waiting")
                allowed = longest_silence(state.seconds or 0.0)
                quiet = state.state in ("running", "starting") and time.monotonic() - told >= allowed
                if not news and not quiet:
                    continue
                shown[state.name] = state
                told = time.monotonic()
                self._console.print(_plain(state), markup=False, highlight=False, soft_wrap=True)


def _table(states: list[NodeState], width: int) -> Table:
    """Return the nodes as a table that is no wider than the terminal.

    Times are never cut. Names get up to a third of the terminal, and a stage's last line the rest; both are cut with an ellipsis.
    """
    rows = [(state, _seconds(state), *_split(state.word)) for state in states]
    took, left = max(len(seconds) for _, seconds, _, _ in rows), max(len(time_left) for *_, time_left in rows)
    gap = 2
    name = min(max(len(state.name) for state in states), max(12, width // 3))
    word = width - (1 + gap + name + gap + took + gap + left + gap * bool(left))
    table = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
    justifications: tuple[JustifyMethod, ...] = ("left", "left", "right", "right", "left")
    for size, style, justify in zip((1, name, took, left, word), ("", "", "", "", "dim"), justifications, strict=True):
        if size > 0:
            table.add_column(width=size, no_wrap=True, overflow="ellipsis", style=style, justify=justify)
    for state, seconds, said, time_left in rows:
        cells = (_SYMBOLS[state.state], escape(state.name), seconds, time_left, escape(said))
        table.add_row(*(cell for cell, size in zip(cells, (1, name, took, left, word), strict=True) if size > 0))
    return table


def _split(word: str) -> tuple[str, str]:
    """Split a line of progress into its text and the remaining time."""
    match = LEFT.search(word)
    if match is None:
        return word, ""
    return word[: match.start()] + word[match.end() :], "~" + match[1].removeprefix("about ").removesuffix(" left")


def _seconds(state: NodeState) -> str:
    if state.seconds is None:
        return "cached" if state.state == "cached" else ""
    return f"{state.seconds:.1f} s" if state.seconds < 60 else duration(state.seconds)


def _plain(state: NodeState) -> str:
    seconds = f" {_seconds(state)}" if state.seconds is not None else ""
    return f"{state.name}: {state.state}{seconds}{f'  {state.word}' if state.word else ''}"
