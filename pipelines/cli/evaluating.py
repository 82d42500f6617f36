"""The command that measures a model from anywhere: `ngrpo evaluate`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ngrpo_kfp.pipelines.cli.help import RUN_HERE
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import Json, Preset, PresetOption, Seed, Settings, chosen_preset, read_config

app = typer.Typer()


@app.command(rich_help_panel=RUN_HERE)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="a directory, org/name@COMMIT of the hub, an s3:// prefix, champion, or the number of a registered version",
        ),
    ],
    preset: Preset = None,
    preset_option: PresetOption = None,
    settings: Settings = None,
    seed: Seed = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="OpenAI API of a vLLM server that serves MODEL, to use instead of a local engine",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate any model on a preset's benchmarks, with its protocol; a registered model by default on those of the run that trained it."""
    from ngrpo.report.phases import messages
    from ngrpo_kfp.pipelines.cli.acting import acting_config
    from ngrpo_kfp.pipelines.local import measuring
    from ngrpo_kfp.pipelines.planning.measured_model import is_registered, source_by_name

    home, console, chosen = workspace(), terminal(), chosen_preset(preset, preset_option)
    served = [] if endpoint is None else [f"evaluation.endpoint.url={json.dumps(endpoint)}"]
    overrides = [*(settings or ()), *served]
    if is_registered(model):
        config = acting_config(chosen, overrides, seed, home, messages(console, as_json=as_json), version=model)
    else:
        config = read_config(chosen, overrides, seed)
        source_by_name(model)  # refuses an invalid name before anything is started
    measuring.measure(config, model, home, console, as_json=as_json)
