"""Warn about mixing settings that leave no randomness, and so no exploration."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.checking.findings import Finding
from ngrpo.config import MixingConfig, RunConfig


def check_exploration(config: RunConfig) -> Iterator[Finding]:
    """Warn if every step takes the most likely token: all rollouts of a group, or all answers to a problem, are then identical."""
    if config.mixing.draws_nothing:
        yield _warning("mixing", config.mixing, f"the {config.rollout.group_size} rollouts of a group")
    mixing, samples = config.evaluation.mixing, config.evaluation.samples
    if mixing is not None and mixing.draws_nothing and samples > 1:
        yield _warning("evaluation.mixing", mixing, f"the {samples} answers to a problem")


def _warning(section: str, mixing: MixingConfig, same: str) -> Finding:
    until = "to the end" if mixing.end_marker is None else f"until {mixing.end_marker!r}"
    return Finding(
        "warning",
        f"{section}.rate",
        f"{section}.rate=1 with strategy={mixing.strategy!r} and label={mixing.label!r} takes the most likely token at every step: {same} "
        f"are the same {until}",
        f"lower {section}.rate, or set {section}.label to 'sampled'",
    )
