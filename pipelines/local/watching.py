"""`ngrpo watch`: measure the served champion once, with the services and downloads of this machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.config import RunConfig
from ngrpo.config.run import watch_settings
from ngrpo.errors import TrackingError
from ngrpo.report.phases import PREPARING, messages, phase
from ngrpo_kfp.pipelines.local.named_model import configuration_of_version, named_model
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.stages.champion_watch import Seen


def watch(config: RunConfig, workspace: Workspace, console: Console, *, as_json: bool = False) -> Seen:
    """Measure the served champion, and show the result.

    Args:
        config: Configuration with `watch`, and with the protocol of the champion's evaluation.
        workspace: Where services and downloads are.
        console: Where the result is shown.
        as_json: Print the result as JSON for programs.

    Raises:
        NGRPOError: See `ngrpo.stages.champion_watch.look` and `named_model`: there is no champion, or it has no evaluation.
    """
    watch_settings(config)
    with phase(messages(console, as_json=as_json), PREPARING) as shown, services(workspace) as around:
        from ngrpo.tracking.promotions import Promotions

        promotions = Promotions.in_store(around.store_uri, config.promotion.model_name)
        named = named_model("champion", config.promotion.model_name, around, workspace)
        if named.version is None:
            raise TrackingError(f"model {named.model_name}: the champion has no version; promote one")
        from ngrpo.stages.champion_watch import Champion, announce_alert, look  # only once there is a champion

        champion = Champion(named.model_name, named.version, named.directory, named.digest)
        made_by = partial(configuration_of_version, workspace=workspace)
        shown.now("measuring the champion")
        seen = look(config, champion, promotions, around.artifact_store(workspace), made_by, say=shown.now)
    if as_json:
        console.print_json(data=_for_programs(seen), indent=1)
    else:
        if seen.drifts:
            console.print(_table(config, seen))
        console.print(escape(f"{'alert' if seen.alert else 'watch'}  {seen.summary}"), soft_wrap=True)
    announce_alert(config, seen)
    return seen


def _for_programs(seen: Seen) -> dict[str, Any]:
    """Return a look as `ngrpo watch --json` prints it: `before` and `now` are mean@n in percent, `drop` and `interval` points."""
    benchmarks = {
        name: {"before": 100.0 * seen.before[name], "now": 100.0 * (seen.before[name] - drift.drop)}
        | seen.facts["benchmarks"][name]
        for name, drift in seen.drifts.items()
    }
    return {
        "model": seen.model_name,
        "version": int(seen.version),
        "alert": seen.alert,
        "summary": seen.summary,
        **seen.facts,
        "rolled_back": seen.rolled_back,
        "benchmarks": benchmarks,
    }


def _table(config: RunConfig, seen: Seen) -> Table:
    from ngrpo.stages.champion_watch import interval_text

    table = Table(title="The champion where it is served (mean of all looks, %)")
    for column in ("benchmark", "promoted with", "now", "difference, with its interval over all looks"):
        table.add_column(column)
    for name, drift in seen.drifts.items():
        before = 100.0 * seen.before[name]
        now = f"{before - 100.0 * drift.drop:.1f}"
        table.add_row(escape(config.title(name)), f"{before:.1f}", now, interval_text(drift))
    return table
