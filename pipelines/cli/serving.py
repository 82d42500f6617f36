"""The commands that serve a model: `ngrpo serve | deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli.help import MODELS, ON_CLUSTER
from ngrpo_kfp.pipelines.cli.lazy import terminal, workspace
from ngrpo_kfp.pipelines.cli.options import (
    IMAGES,
    Cluster,
    ImagesFile,
    PresetOption,
    Registered,
    Settings,
    checked,
    naming_model,
    read_cluster,
    read_cluster_config,
)

if TYPE_CHECKING:
    from ngrpo.config import RunConfig

app = typer.Typer()


@app.command(rich_help_panel=MODELS)
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="champion, challenger, the number of a version, or a run")
    ],
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="port on 127.0.0.1")] = 8000,
    length: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            metavar="TOKENS",
            min=2,
            help="tokens of a prompt and its response together (default: by the settings of its run)",
        ),
    ] = None,
    registered: Registered = None,
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    preset_option: PresetOption = None,
    settings: Settings = None,
) -> None:
    """Serve a model on this machine until Ctrl-C (vLLM's OpenAI API), or with --cluster print its InferenceService of KServe.

    With --cluster, MODEL is champion or the number of a version, and --preset, --set and --images apply. Without --preset the settings are
    those of the run that made the version.
    """
    name = None if registered is None else checked("--model", registered)
    if cluster is None:
        if preset_option is not None or settings:
            raise ConfigError(
                "--preset and --set go with --cluster: here a model is served as its run was set; leave them out"
            )
        from ngrpo_kfp.pipelines.local import serving

        serving.serve_model(model, name, port, length, workspace(), terminal())
        return
    from ngrpo_kfp.pipelines.cli import deployment
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    deployment.require_registered(model)
    found = Images(images)
    config = _cluster_config(model, name, preset_option, settings, cluster)
    deployment.print_service(model, config, found, workspace())


@app.command(rich_help_panel=ON_CLUSTER)
def deploy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="champion, or the number of a registered version")],
    cluster: Annotated[
        Path, typer.Option("--cluster", metavar="FILE", help="TOML file with the settings of `cluster`")
    ],
    registered: Registered = None,
    images: ImagesFile = IMAGES,
    preset_option: PresetOption = None,
    settings: Settings = None,
) -> None:
    """Deploy a model with KServe, evaluate it through its endpoint, and roll back (exit code 1) if the results differ."""
    from ngrpo_kfp.pipelines.cli import deployment
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    deployment.require_registered(model)
    name, found = None if registered is None else checked("--model", registered), Images(images)
    config = _cluster_config(model, name, preset_option, settings, cluster)
    if not deployment.deploy_version(model, config, found, workspace(), terminal()):
        raise typer.Exit(1)


def _cluster_config(
    model: str, name: str | None, preset: str | None, settings: list[str] | None, cluster: Path
) -> RunConfig:
    if preset is not None:
        named = [] if name is None else [naming_model(name)]
        return read_cluster_config(preset, [*(settings or ()), *named], None, cluster)
    from ngrpo.config.reading import override
    from ngrpo_kfp.pipelines.cli import deployment

    read = read_cluster(cluster)
    return override(deployment.deployed_configuration(model, name, workspace(), read), settings or [])
