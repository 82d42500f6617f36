"""Check that a stage publishes only finite weights and metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ngrpo.errors import TrainingError


def require_finite(stage: str, payload: Path) -> None:
    """Refuse the result of a stage whose weights or metrics are not finite.

    Args:
        stage: Name of the stage, for the error.
        payload: Its output: `metrics.json`, and `model/` if it made one.

    Raises:
        TrainingError: A weight or a metric is NaN or infinite.
    """
    cure = "set a smaller learning rate, or look for the fault in model and data, and run again"
    for name, value in json.loads((payload / "metrics.json").read_bytes()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise TrainingError(f"{stage}: not published: the metric {name} is {value}; {cure}")
    if (payload / "model").is_dir():
        from ngrpo.data.weights import weights_problem

        problem = weights_problem(payload / "model")
        if problem is not None:
            raise TrainingError(f"{stage}: not published: the model is not sound: {problem}; {cure}")
