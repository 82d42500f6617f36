"""How the champion is watched where it is served."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ngrpo.config.endpoint import EndpointConfig
from ngrpo.section import Confidence, Points, Samples, Section, Spelled


class WatchConfig(Section):
    """How `ngrpo watch` measures the served champion, and what it does if the champion has become worse (docs/watch.md)."""

    endpoint: EndpointConfig
    """Where the champion is served."""
    benchmarks: Annotated[tuple[Spelled, ...], Field(max_length=50)] = ()
    """Benchmarks that it is measured on; none for `promotion.benchmark` alone."""
    samples: Samples = 4
    """Answers for each problem, at each look."""
    margin: Points = 1.0
    """Drop of mean@n against the evaluation that it was promoted on, in points, that is no reason for an alert."""
    confidence: Confidence = 0.95
    """One less the chance that there is ever an alert, in all looks at a champion and on all benchmarks, without a larger drop."""
    action: Literal["alert", "rollback"] = "alert"
    """What is done about a larger drop: it is said, or the promotion is undone too."""
