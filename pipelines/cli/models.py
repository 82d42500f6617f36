"""Commands on models and decisions: `ngrpo regrade | promote | rollback | history | mirror`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import MODELS
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    ActingPreset,
    Preset,
    PresetOption,
    RunDirectory,
    Seed,
    Settings,
    chosen_preset,
    read_config,
)

if TYPE_CHECKING:
    from ngrpo.tracking.promotions import NoChampionLeftError

# The commands import what they need when they run: MLflow takes seconds.

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def regrade(run: RunDirectory = None) -> None:
    """Grade the samples of a finished run again, without generating any."""
    from ngrpo_kfp.pipelines.local.regrading import regrade_run

    home = workspace()
    regrade_run(run or home.latest, home, terminal())


@app.command(rich_help_panel=MODELS)
def promote(
    version: Annotated[int, typer.Argument(metavar="VERSION", help="number of the version")],
    preset: ActingPreset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    override: Annotated[
        str | None,
        typer.Option("--override", metavar="REASON", help="make it the champion, whatever the gate says"),
    ] = None,
) -> None:
    """Ask the gate about a registered version again."""
    from ngrpo.tracking.reasons import checked_reason
    from ngrpo_kfp.pipelines.cli.acting import acting_config
    from ngrpo_kfp.pipelines.local.named_model import require_version
    from ngrpo_kfp.pipelines.local.store_ahead import store_ahead

    if override is not None:
        checked_reason(override, "--override")
    home, console = workspace(), terminal()
    config = acting_config(chosen_preset(preset, preset_option), settings, seed, home, console)
    require_version(str(version), config.promotion.model_name, home)
    with store_ahead(home):  # starting it takes as long as the imports
        from ngrpo_kfp.pipelines.cli import promotion

        promotion.promote_version(config, str(version), override, home, console)


@app.command(rich_help_panel=MODELS)
def rollback(
    reason: Annotated[str, typer.Argument(metavar="REASON", help="why; kept in the history")],
    preset: ActingPreset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before the model is left without a champion")] = False,
) -> None:
    """Undo the last promotion."""
    from ngrpo.tracking.reasons import checked_reason
    from ngrpo_kfp.pipelines.cli.acting import acting_config, confirmed
    from ngrpo_kfp.pipelines.local.store_ahead import store_ahead

    def confirm(refusal: NoChampionLeftError) -> bool:
        return yes or confirmed(
            f"model {refusal.model_name} has no champion then. Roll back version {refusal.version}?"
        )

    checked_reason(reason, "rollback")
    home, console = workspace(), terminal()
    config = acting_config(chosen_preset(preset, preset_option), settings, seed, home, console)
    with store_ahead(home):  # starting it takes as long as the imports
        from ngrpo_kfp.pipelines.cli import promotion

        promotion.roll_back(config, reason, home, console, confirm=confirm)


@app.command(rich_help_panel=MODELS)
def history(
    preset: ActingPreset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """List the decisions on a model."""
    from rich.console import Console

    from ngrpo_kfp.pipelines.cli.acting import acting_config
    from ngrpo_kfp.pipelines.local.store_ahead import store_ahead

    home, console = workspace(), terminal()
    said = Console(stderr=True) if as_json else console
    config = acting_config(chosen_preset(preset, preset_option), settings, seed, home, said)
    with store_ahead(home, stopped=False):  # starting it takes as long as the imports
        from ngrpo_kfp.pipelines.cli import promotion

        promotion.show_history(config, home, console, as_json=as_json)


@app.command(rich_help_panel=MODELS)
def mirror(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="directory or s3:// prefix for the copies; keep gated sets private"),
    ],
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
) -> None:
    """Copy the data sets and the model of a configuration, so that runs need no hub."""
    from ngrpo_kfp.pipelines.cli.mirror import copy_sources

    copy_sources(read_config(chosen_preset(preset, preset_option), settings, seed), target, workspace(), terminal())
