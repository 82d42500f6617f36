"""Check that a run does not evaluate a served model instead of the one that it trains."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import RunConfig


def check_endpoint(config: RunConfig) -> Iterator[Finding]:
    """Refuse `evaluation.endpoint` in a run: the model that it trains is not served."""
    endpoint = config.evaluation.endpoint
    if endpoint is not None:
        yield Finding(
            "error",
            "evaluation.endpoint",
            f"evaluation.endpoint.url={endpoint.url}: a run evaluates the models that it trains, which are not served yet",
            "remove it here; `ngrpo evaluate MODEL --endpoint URL` evaluates a served model",
        )
