"""`--base champion`: a run that starts from the current champion in place of the preset's base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ngrpo.config import RunConfig, validate
from ngrpo.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.tracking.model_registry import ModelRegistry


def from_champion(config: RunConfig) -> RunConfig:
    """Return a configuration whose base model is the champion, pinned by version and digest, without a warm start, which it has had.

    Args:
        config: Names the registered model in `promotion.model_name`; MLflow is that of the environment.

    Raises:
        TrackingError: There is no champion, its files are gone or out of the stages' reach, or MLflow cannot be used.
    """
    from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry

    registry = ModelRegistry(config.promotion.model_name)
    version = registry.by_alias(CHAMPION)
    if version is None:
        raise TrackingError(f"model {registry.name} has no champion to start from: run once without --base champion")
    tree = config.model_dump(mode="json")
    tree["model"]["source"] = registered_source(registry, version, "the champion, ")
    tree["warm_start"]["steps"] = 0
    return validate(RunConfig, tree)


def registered_source(registry: ModelRegistry, version: ModelVersion, which: str = "") -> dict[str, Any]:
    """Return a version of the registry as `model.source`, pinned by its digest.

    Args:
        registry: The registered model.
        version: The version.
        which: Its role, for the error.

    Raises:
        TrackingError: Its files are gone or out of the stages' reach, or no run registered it.
    """
    from ngrpo.tracking.model_registry import DIGEST

    what = f"model {registry.name}: {which}version {version.version},"
    missing = registry.missing(version)
    if missing:
        raise TrackingError(f"{what} has lost files ({missing[0]}): restore them, or `ngrpo rollback`")
    if DIGEST not in version.tags:
        raise TrackingError(f"{what} was not registered by a run (it has no tag {DIGEST}): name it in model.source")
    location = registry.location(version)
    if not location.startswith("s3://"):
        raise TrackingError(
            f"{what} is kept in {location}, where stages cannot read it: give MLflow an artifact root in object storage (s3://…)"
        )
    return {
        "kind": "registered",
        "name": registry.name,
        "version": int(version.version),
        "id": location,
        "digest": version.tags[DIGEST],
    }
