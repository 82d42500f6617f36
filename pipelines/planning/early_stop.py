"""`evaluation.early_stop.opponent = "champion"`: the current champion, pinned by the key of its evaluation."""

from __future__ import annotations

from ngrpo.config import RunConfig
from ngrpo.config.reading import override


def against_champion(config: RunConfig) -> RunConfig:
    """Return a configuration with the opponent `champion` replaced by the key of its evaluation, or by the warm start if there is none.

    So the key of an evaluation that stops early covers its opponent. MLflow is that of the environment, and is only queried if the
    configuration names the champion.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    early = config.evaluation.early_stop
    if early is None or early.opponent != "champion":
        return config
    from ngrpo.tracking.model_registry import CHAMPION, ModelRegistry, evaluation_key

    champion = ModelRegistry(config.promotion.model_name).by_alias(CHAMPION)
    key = None if champion is None else evaluation_key(champion)
    return override(config, [f"evaluation.early_stop.opponent={key or 'warm_start'}"])
