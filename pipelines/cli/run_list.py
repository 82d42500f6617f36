"""`ngrpo runs` and `ngrpo status` for runs on this machine: tables made from their files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.report.phases import messages, phase
from ngrpo_kfp.pipelines.cli.amounts import bytes_text, time_text
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.local.run_artifacts import Sizes, sizes
from ngrpo_kfp.pipelines.local.run_views import NodeView, RunView, look
from ngrpo_kfp.pipelines.local.runs import Kind, everything
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.nodes import stage_of

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "stopped": "yellow", "cached": "green"}


def show_runs(workspace: Workspace, console: Console, *, as_json: bool) -> None:
    """List the runs, measurements and experiments of a workspace, newest first.

    Args:
        workspace: Where they are.
        console: Where they are shown.
        as_json: Print a JSON list in place of the table.
    """
    with phase(messages(console, as_json=as_json), "looking at the runs and their sizes"):
        kept = sizes(workspace)
        views = [(look(*one, workspace), kept[one[1]]) for one in everything(workspace)]
    if as_json:
        console.out(
            json.dumps([_record(view) | _bytes(size) for view, size in views], indent=1, ensure_ascii=False),
            highlight=False,
        )
        return
    if not views:
        console.print(f"workspace {escape(str(workspace.root))}: no run yet; `ngrpo run` starts one", soft_wrap=True)
        return
    table = Table(
        caption="sizes: what no other run here uses (a registered version may need it too); `ngrpo prune` frees space",
        caption_justify="left",
    )
    for column in ("run", "preset, model", "state", "began (UTC)", "took", "result", "version"):
        table.add_column(column, overflow="fold")
    table.add_column("size", justify="right")
    for view, size in views:
        table.add_row(*map(escape, _cells(view)), _size_text(size), style=None)
    console.print(table)


def show_status(kind: Kind, directory: Path, workspace: Workspace, console: Console, *, as_json: bool) -> None:
    """Show the progress of each stage of a run, as a table or as JSON."""
    view = look(kind, directory, workspace)
    if as_json:
        console.out(json.dumps(_record(view), indent=1, ensure_ascii=False), highlight=False)
        return
    table = Table(title=escape(harmless(f"{view.name}: {_state_text(view)}")))
    for column in ("stage", "", "time", "progress"):
        table.add_column(column)
    table.add_column("", overflow="fold")
    for node in view.nodes:
        colour = _COLOURS.get(node.state, "dim")
        time_spent = "" if node.seconds is None else time_text(node.seconds)
        word = harmless(node.word) if node.state in ("running", "failed", "stopped") else ""
        table.add_row(node.node, f"[{colour}]{node.state}[/]", time_spent, progress_text(node), escape(word))
    console.print(table)
    for line in (*_below(view), *_weights(view, workspace)):
        console.print(escape(harmless(line)), soft_wrap=True)


def progress_text(node: NodeView) -> str:
    """Return the progress of a node: `step 20/60, about 2 min left`."""
    if node.step is None:
        return ""
    done, total = node.step
    said = f"step {done}/{total}" if node.unit == "step" else f"{done}/{total} {node.unit}"
    return said if node.seconds_left is None else f"{said}, about {time_text(node.seconds_left)} left"


def _below(view: RunView) -> Iterator[str]:
    yield f"directory  {view.directory}"
    if view.state in ("failed", "stopped"):
        yield f"log        `ngrpo logs {view.stage or ''} {view.name}`".replace("  `", " `")
        yield "cure       run it again: finished stages are kept, and training goes on from its last checkpoint"
    elif view.state == "running":
        yield f"log        `ngrpo logs {view.name} -f`"
    elif view.kind == "run":
        yield f"result     {_result_text(view)}"


def _weights(view: RunView, workspace: Workspace) -> Iterator[str]:
    """Yield where the models are that a run trained or took from the cache."""
    for node in view.nodes:
        place = workspace.cache / "ngrpo_training" / node.key / "model"
        if stage_of(node.node) == "ngrpo_training" and node.state in ("done", "cached") and place.is_dir():
            yield f"weights    {place}"


def _cells(view: RunView) -> Sequence[str]:
    what = ", ".join(filter(None, [view.preset, view.model]))
    took = "" if view.seconds is None else time_text(view.seconds)
    version = "" if view.version is None else str(view.version)
    name = f"{view.name} ({view.kind})" if view.kind != "run" else view.name
    return (name, what, _state_text(view), f"{view.began:%Y-%m-%d %H:%M}", took, _result_text(view), version)


def _state_text(view: RunView) -> str:
    if view.stage is None:
        return view.state
    node = next(node for node in view.nodes if node.node == view.stage)
    progress = progress_text(node)
    return f"{view.state} at {view.stage}" + (f", {progress}" if view.state == "running" and progress else "")


def _result_text(view: RunView) -> str:
    if view.decision is None:
        return ""
    if view.gain is None or view.interval is None:
        return view.decision
    return f"{view.decision}, {view.gain:+.1f} [{view.interval[0]:+.1f}, {view.interval[1]:+.1f}]"


def _size_text(size: Sizes) -> str:
    return ("> " if size.unknown else "") + bytes_text(size.total)


def _record(view: RunView) -> dict[str, Any]:
    return {
        "name": view.name,
        "kind": view.kind,
        "directory": str(view.directory),
        "preset": view.preset,
        "model": view.model,
        "state": view.state,
        "stage": view.stage,
        "began": view.began.isoformat(timespec="seconds"),
        "seconds": None if view.seconds is None else round(view.seconds, 3),
        "gain": view.gain,
        "interval": view.interval,
        "decision": view.decision,
        "version": view.version,
        "stages": {node.node: {"state": node.state, "key": node.key, "seconds": node.seconds} for node in view.nodes},
    }


def _bytes(size: Sizes) -> dict[str, Any]:
    """Return the sizes of a run for the list."""
    return {
        "bytes": {
            "directory": size.directory,
            "store": size.store,
            "cache": size.cache,
            "artifacts_of_unknown_size": size.unknown,
        }
    }
