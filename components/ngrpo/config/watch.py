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
    """Benchmarks that it is measured on; by default only `promotion.benchmark`."""
    samples: Samples = 4
    """Answers for each problem, at each look."""
    margin: Points = 1.0
    """Drop of mean@n against the evaluation of its promotion, in points, that causes no alert."""
    confidence: Confidence = 0.95
    """One minus the probability of any false alert, over all looks at a champion and all benchmarks."""
    action: Literal["alert", "rollback"] = "alert"
    """Reaction to a larger drop: report it, or also undo the promotion."""
