"""The settings of a schedule on the cluster, which `ngrpo schedule replace` keeps if no preset is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from ngrpo.config import RunConfig, validate
from ngrpo.config.cluster import ClusterConfig
from ngrpo.config.reading import override
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.kubeflow.client import connect
from ngrpo_kfp.pipelines.kubeflow.scheduling.recurring_runs import require, spec_used

_TASK = "scheduled-run"
"""The task of a schedule that starts runs. A watch has none, and schedules of earlier versions have every stage in its place."""


def kept_settings(
    name: str, overrides: Sequence[str], cluster: ClusterConfig | None
) -> tuple[RunConfig, Literal["champion"] | None]:
    """Return the configuration of a schedule, changed as asked, and its base: `champion`, or None.

    Args:
        name: Name of the schedule.
        overrides: Settings to change, `section.field=value`.
        cluster: Settings of the cluster in place of those it has.

    Raises:
        ClusterError: There is no such schedule, or the API refuses or cannot be reached.
        ConfigError: This version cannot read its configuration, or a setting is unknown or invalid.
    """
    client = connect()
    spec = spec_used(client, require(client, name))
    try:
        config = validate(RunConfig, json.loads(spec["pipelineInfo"]["description"]))
        task = spec["root"]["dag"]["tasks"].get(_TASK)
        base = None if task is None else task["inputs"]["parameters"]["base"]["runtimeValue"]["constant"]
    except (KeyError, ValueError, ConfigError) as error:
        raise ConfigError(
            f"schedule {name}: this version of ngrpo cannot read its settings; name its preset (--preset PRESET)"
        ) from error
    if cluster is not None:
        config = config.model_copy(update={"cluster": cluster})
    return override(config, overrides), "champion" if base == "champion" else None
