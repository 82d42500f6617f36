"""`evaluation.early_stop.opponent = "champion"`: the champion of the day, pinned by the key of its evaluation."""

from __future__ import annotations

from ngrpo.config import RunConfig
from ngrpo.config.reading import override


def against_champion(config: RunConfig) -> RunConfig:
    """Return a configuration that names the champion, where it asks for it, by the key of its evaluation; the warm start if there is none.

    So the key of an evaluation that stops early says against whom it did. MLflow is the one that the environment names, and is asked only
    where the configuration asks for the champion.

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
