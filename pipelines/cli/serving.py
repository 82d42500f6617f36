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
    Settings,
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
    cluster: Cluster = None,
    images: ImagesFile = IMAGES,
    preset_option: PresetOption = None,
    settings: Settings = None,
) -> None:
    """Serve a model on this machine until Ctrl-C (vLLM's OpenAI API), or with --cluster print its InferenceService of KServe.

    With --cluster, MODEL is champion or the number of a version, and --preset, --set and --images apply. Without --preset the settings are
    those of the run that made the version.
    """
    if cluster is None:
        if preset_option is not None or settings:
            raise ConfigError(
                "--preset and --set go with --cluster: here a model is served as its run was set; leave them out"
            )
        from ngrpo_kfp.pipelines.local import serving

        serving.serve_model(model, port, length, workspace(), terminal())
        return
    from ngrpo_kfp.pipelines.cli import deployment
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    deployment.require_registered(model)
    found = Images(images)
    deployment.print_service(model, _cluster_config(model, preset_option, settings, cluster), found, workspace())


@app.command(rich_help_panel=ON_CLUSTER)
def deploy(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="champion, or the number of a registered version")],
    cluster: Annotated[
        Path, typer.Option("--cluster", metavar="FILE", help="TOML file with the settings of `cluster`")
    ],
    images: ImagesFile = IMAGES,
    preset_option: PresetOption = None,
    settings: Settings = None,
) -> None:
    """Deploy a model with KServe, evaluate it through its endpoint, and roll back (exit code 1) if the results differ."""
    from ngrpo_kfp.pipelines.cli import deployment
    from ngrpo_kfp.pipelines.kubeflow.images import Images

    deployment.require_registered(model)
    found = Images(images)
    config = _cluster_config(model, preset_option, settings, cluster)
    if not deployment.deploy_version(model, config, found, workspace(), terminal()):
        raise typer.Exit(1)


def _cluster_config(model: str, preset: str | None, settings: list[str] | None, cluster: Path) -> RunConfig:
    if preset is not None:
        return read_cluster_config(preset, settings, None, cluster)
    from ngrpo.config.reading import override
    from ngrpo_kfp.pipelines.cli import deployment

    read = read_cluster(cluster)
    return override(deployment.deployed_configuration(model, workspace(), read), settings or [])
