"""`ngrpo prune`: show what would be removed and why, or remove it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.report.phases import messages
from ngrpo_kfp.pipelines.cli.amounts import bytes_text
from ngrpo_kfp.pipelines.local.pruning import Pruning, Wish, prune
from ngrpo_kfp.pipelines.local.workspace import Workspace


def show_pruning(workspace: Workspace, wish: Wish, console: Console, *, yes: bool, as_json: bool = False) -> None:
    """Show what nothing needs any more, and with `yes` remove it; see `ngrpo_kfp.pipelines.local.pruning.prune`.

    Args:
        workspace: The workspace.
        wish: What is to be kept.
        console: Where it is shown.
        yes: Remove it.
        as_json: Print JSON for programs, once all is done.
    """
    if not workspace.root.is_dir():
        if as_json:
            console.print_json(data=_for_programs(Pruning((), {}), yes=yes, free=True), indent=1)
            return
        console.print(
            f"workspace {escape(str(workspace.root))}: there is none, so there is nothing to remove", soft_wrap=True
        )
        return

    def show(plan: Pruning) -> None:
        if not as_json:
            _show(plan, console, yes=yes)

    plan, free = prune(workspace, wish, show, messages(console, as_json=as_json), really=yes)
    if as_json:
        console.print_json(data=_for_programs(plan, yes=yes, free=free), indent=1)
        return
    if yes and plan.items:
        console.print(f"removed: {len(plan.items)} things, {bytes_text(plan.size)}")
    if not free:
        console.print("the store has not freed the deleted bytes yet; it does so during the next long run")


def _for_programs(plan: Pruning, *, yes: bool, free: bool) -> dict[str, Any]:
    """Return a pruning as `ngrpo prune --json` prints it."""
    return {
        "removed": yes,
        "bytes": plan.size,
        "items": [{"what": item.what, "name": item.name, "bytes": item.size, "why": item.why} for item in plan.items],
        "kept": dict(plan.kept),
        "freed": yes and free,
    }


def _show(plan: Pruning, console: Console, *, yes: bool) -> None:
    for name, why in plan.kept.items():
        console.print(escape(f"kept  {name}: {why}"), soft_wrap=True)
    if not plan.items:
        console.print("nothing to remove")
        return
    table = Table()
    for column in ("goes" if yes else "would go", "name"):
        table.add_column(column)
    table.add_column("size", justify="right")
    table.add_column("why", overflow="fold")
    for item in plan.items:
        table.add_row(item.what, escape(item.name), bytes_text(item.size), escape(item.why))
    console.print(table)
    if not yes:
        console.print(f"{bytes_text(plan.size)} in {len(plan.items)} things; nothing was removed: add --yes to do so")
