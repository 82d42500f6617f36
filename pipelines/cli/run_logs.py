"""`ngrpo logs` for a run on this machine: the logs of its stages, and with `--follow` what is added to them."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.local.run_views import RunView, log_of, look
from ngrpo_kfp.pipelines.local.runs import Kind, name_of
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.nodes import find_node

_PAUSE_SECONDS = 0.25
_OVER = ("cached", "done", "failed", "stopped", "not run")


def show_logs(
    kind: Kind,
    directory: Path,
    node: str | None,
    workspace: Workspace,
    console: Console,
    *,
    follow: bool,
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Print the log of a stage.

    Args:
        kind: What kind of run it is.
        directory: Its directory.
        node: The node, or a stage with one node only. None for the node that is running, failed or was stopped, else the last; with
            `follow` that one and all after it.
        workspace: Where the run is.
        console: Where it is printed.
        follow: Keep printing until the stage ends, or the run if no node is named.
        pause_seconds: Time between two reads of a followed log.

    Raises:
        ConfigError: The run has no such node, or it has printed nothing.
    """
    view = look(kind, directory, workspace)
    if node is not None:
        node = find_node(node, [each.node for each in view.nodes])
        if not follow and log_of(kind, directory, node) is None:
            raise ConfigError(_why_nothing(view, node))
    chosen = node or _at_work(view)
    if not follow:
        if chosen is None:
            raise ConfigError(f"run {name_of(kind, directory)}: no stage has begun; `ngrpo status` shows it")
        _print_from(console, kind, directory, chosen, 0, final=True)
        return
    _follow(kind, directory, node, chosen, workspace, console, pause_seconds)


def _follow(
    kind: Kind,
    directory: Path,
    asked: str | None,
    first: str | None,
    workspace: Workspace,
    console: Console,
    pause_seconds: float,
) -> None:
    offsets: dict[str, int] = {}
    while True:
        # Before the log is read, so that the last lines of an ended stage are not missed.
        view = look(kind, directory, workspace)
        states = {each.node: each.state for each in view.nodes}
        nodes = list(states)
        begun = nodes[nodes.index(first) :] if first is not None else nodes
        for name in [asked] if asked is not None else begun:
            if log_of(kind, directory, name) is None:
                continue
            if name not in offsets and asked is None:
                _head(console, name)
            final = states[name] in _OVER
            offsets[name] = _print_from(console, kind, directory, name, offsets.get(name, 0), final=final)
        if view.state != "running" or (asked is not None and states[asked] in _OVER):
            break
        time.sleep(pause_seconds)
    if asked is not None and asked not in offsets:
        raise ConfigError(_why_nothing(view, asked))
    if asked is None:
        _head(console, f"{view.name}: {view.state}" + (f" at {view.stage}" if view.stage else ""))


def _at_work(view: RunView) -> str | None:
    if view.stage is not None and log_of(view.kind, view.directory, view.stage) is not None:
        return view.stage
    begun = [each.node for each in view.nodes if log_of(view.kind, view.directory, each.node) is not None]
    return begun[-1] if begun else None


def _why_nothing(view: RunView, node: str) -> str:
    state = next(each.state for each in view.nodes if each.node == node)
    if state == "cached":
        return (
            f"run {view.name}: {node} was cached and has printed nothing; look at the run that made it (`ngrpo runs`)"
        )
    return f"run {view.name}: {node} has printed nothing: it is {state}; `ngrpo status {view.name}` shows the run"


def _print_from(console: Console, kind: Kind, directory: Path, node: str, offset: int, *, final: bool) -> int:
    """Print the lines of a log from a byte offset, and return the offset after them; an unfinished last line only if `final`."""
    log = log_of(kind, directory, node)
    if log is None or not log.exists():
        return offset
    with log.open("rb") as file:
        file.seek(offset)
        data = file.read()
    if not final:
        data = data[: data.rfind(b"\n") + 1]
    for line in data.decode("utf-8", errors="replace").removesuffix("\n").split("\n") if data else ():
        print(harmless(line), file=console.file, flush=True)  # not through rich, which would expand tabs
    return offset + len(data)


def _head(console: Console, title: str) -> None:
    print(f"--- {harmless(title)}", file=console.file, flush=True)
