"""`--base champion`: a run that starts from the current champion in place of the preset's base model."""

from __future__ import annotations

from ngrpo.config import RunConfig, validate
from ngrpo.errors import TrackingError


def from_champion(config: RunConfig) -> RunConfig:
    """Return a configuration whose base model is the champion, pinned by version and digest, without a warm start, which it has had.

    Args:
        config: Names the registered model in `promotion.model_name`; MLflow is that of the environment.

    Raises:
        TrackingError: There is no champion, its files are gone or out of the stages' reach, or MLflow cannot be used.
    """
    from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry
    from ngrpo.tracking.registered_source import registered_source

    registry = ModelRegistry(config.promotion.model_name)
    version = registry.by_alias(CHAMPION)
    if version is None:
        raise TrackingError(f"model {registry.name} has no champion to start from: run once without --base champion")
    tree = config.model_dump(mode="json")
    tree["model"]["source"] = registered_source(registry, version, "the champion, ")
    tree["warm_start"]["steps"] = 0
    return validate(RunConfig, tree)
