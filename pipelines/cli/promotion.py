"""`ngrpo promote | rollback | history`: manual decisions on models, and the list of all decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.checking.light_imports import UNUSED_WITHOUT_TABLES
from ngrpo.config import RunConfig
from ngrpo.errors import TrackingError
from ngrpo.report.phases import PREPARING, messages, phase
from ngrpo.stages.decision_seal import decision_key, sign_decision
from ngrpo.tracking.reasons import checked_reason
from ngrpo_kfp.pipelines.local.announcing import announce_decisions, announce_rollback
from ngrpo_kfp.pipelines.local.named_model import configuration_of_version, registered_version
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.tracking_ahead import tracking_ahead
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from ngrpo.tracking.promotions import Entry, NoChampionLeftError, Promotions

_MINUTE = len("2026-11-29T15:54")
"""Length of a timestamp in the history up to the minute, in characters."""


def promote_version(
    config: RunConfig, number: str, override: str | None, workspace: Workspace, console: Console
) -> None:
    """Ask the gate of a configuration about a registered version, by the evaluation stored with it.

    Args:
        config: Configuration with the gate and the name of the model.
        number: The version.
        override: Reason to make it the champion whatever the gate says; None to ask the gate.
        workspace: Where services and the last run are.
        console: Where the decision is shown.

    Raises:
        ConfigError: The reason is empty or no plain text, or the signing key that the settings name is missing or invalid.
        TrackingError: There is no such version, its weights are not those that were evaluated, or it has no evaluation.
        DamagedStateError: Its evaluation is damaged.
        DataError: Its evaluation lacks a benchmark of the gate.
    """
    if override is not None:
        checked_reason(override, "--override")
    key = decision_key(config)
    with (
        _promotions(config, workspace, console) as promotions,
        phase(console, f"asking the gate about version {number}"),
    ):
        from ngrpo.contracts.evaluation import parse_evaluation
        from ngrpo.stages.model_promotion import decide_and_crown, require_benchmarks

        version = registered_version(promotions.registry, number)
        stored = promotions.registry.evaluation(version)
        if stored is None:
            raise TrackingError(
                f"model {config.promotion.model_name}: version {number} has no evaluation; run the pipeline"
            )
        evaluation = parse_evaluation(
            stored,
            where=f"model {config.promotion.model_name}: the evaluation of version {number}",
            cure="run the pipeline, which evaluates it anew",
        )
        require_benchmarks(config.promotion, evaluation)
        if promotions.registry.stored_digest(version) != evaluation.get("weights", {}).get("trained"):
            raise TrackingError(
                f"model {config.promotion.model_name}: the weights of version {number} in the registry are not those that were "
                "evaluated; run the pipeline, which registers them anew"
            )
        decision = decide_and_crown(config.promotion, promotions, version, evaluation, config.seed, override=override)
        console.print(escape(f"{decision['decision']}: {decision['reason']}"))
        if key is not None:
            made_by = partial(configuration_of_version, workspace=workspace)
            console.print(sign_decision(promotions, decision, key, made_by), soft_wrap=True)
        _show_aliases(promotions, console)
    announce_decisions(config, [decision])


def roll_back(
    config: RunConfig,
    reason: str,
    workspace: Workspace,
    console: Console,
    *,
    confirm: Callable[[NoChampionLeftError], bool],
) -> None:
    """Undo the last promotion of a configuration's model.

    Args:
        config: Configuration with the name of the model.
        reason: The reason, which the history records.
        workspace: Where services are.
        console: Where the result is shown.
        confirm: Asked before the model is left without a champion. No lock is held while it is asked.

    Raises:
        NoChampionLeftError: The model would be left without a champion, and `confirm` says no.
        ConfigError: The reason is empty or no plain text, or the signing key that the settings name is missing or invalid.
        TrackingError: No promotion is in effect, or the champion before it is gone.
        DamagedStateError: The journal, or the history's entry of that promotion, is damaged.
    """
    checked_reason(reason, "rollback")
    key = decision_key(config)
    with _promotions(config, workspace, console) as promotions:
        from ngrpo.tracking.promotions import NoChampionLeftError

        try:
            entry = promotions.rollback(reason, to_none=False)
        except NoChampionLeftError as refusal:
            if not confirm(refusal):
                raise
            entry = promotions.rollback(reason)
        console.print(f"rolled back: version {entry['version']}")
        if key is not None:
            decision = {**entry, "model": config.promotion.model_name}
            made_by = partial(configuration_of_version, workspace=workspace)
            console.print(sign_decision(promotions, decision, key, made_by), soft_wrap=True)
        _show_aliases(promotions, console)
    announce_rollback(config, entry)


def show_history(config: RunConfig, workspace: Workspace, console: Console, *, as_json: bool = False) -> None:
    """List every decision on a configuration's model, oldest first, and the current aliases; as JSON the decisions alone."""
    with _promotions(config, workspace, messages(console, as_json=as_json), stopped=False) as promotions:
        if as_json:
            console.print_json(data=promotions.history(), indent=1)
            return
        table = Table(title=f"Decisions on {config.promotion.model_name}")
        for column in ("", "time (UTC)", "version", "decision", "champion"):
            table.add_column(column)
        table.add_column("why", overflow="fold")
        for entry in promotions.history():
            table.add_row(*_cells(entry))
        console.print(table)
        _show_aliases(promotions, console)


@contextmanager
def _promotions(
    config: RunConfig, workspace: Workspace, said: Console, *, stopped: bool = True
) -> Iterator[Promotions]:
    # MLflow is imported while the store starts: both take a second or more.
    importing = tracking_ahead("ngrpo.tracking.promotions", UNUSED_WITHOUT_TABLES)
    with phase(said, PREPARING) as preparing, services(workspace, stopped=stopped) as around:
        importing.join()
        from ngrpo.tracking.promotions import Promotions

        preparing.end()
        yield Promotions.in_store(around.store_uri, config.promotion.model_name)


def _cells(entry: Entry) -> list[str]:
    before, after = (entry[when]["champion"] or "none" for when in ("before", "after"))
    champion = after if before == after else f"{before} → {after}"
    return [
        str(entry["sequence"]),
        escape(entry["time"][:_MINUTE].replace("T", " ")),
        entry["version"],
        entry["decision"],
        champion,
        escape(entry["reason"]),
    ]


def _show_aliases(promotions: Promotions, console: Console) -> None:
    named = [f"{alias} {number}" for alias, number in promotions.registry.aliases().items() if number is not None]
    console.print(f"{promotions.registry.name}: {', '.join(named) or 'no version has an alias'}")
