"""A served model in place of an engine, which a run that trains cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig


def check_endpoint(config: RunConfig) -> Iterator[Finding]:
    """Refuse `evaluation.endpoint` in a run: nobody serves the model that it trains."""
    endpoint = config.evaluation.endpoint
    if endpoint is not None:
        yield Finding(
            "error",
            "evaluation.endpoint",
            f"evaluation.endpoint.url={endpoint.url}: a run evaluates the models that it trains, which nobody serves yet",
            "leave it out here; `ngrpo evaluate MODEL --endpoint URL` measures a served model",
        )
