"""What happened, in words and figures that may leave the machine: no credential, and nothing of prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ngrpo.config.notifications import EventKind
from ngrpo.contracts.promotion import Promotion

Fact = str | int | float | bool | None


@dataclass(frozen=True)
class Event:
    """Something that happened to a run or to a model."""

    kind: EventKind
    run: str | None
    """Name of a local run, or id of a run on a cluster; none where a person acted on a model."""
    model_name: str | None
    """Registered model."""
    version: int | None
    """Version of the model that it happened to."""
    summary: str
    """One sentence."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """More, by name."""


def decided(promotion: Promotion, run: str | None) -> Event | None:
    """Return the event of a decision on a model, none where the model was the champion before."""
    if promotion["decision"] == "unchanged":
        return None
    facts: dict[str, Fact] = {"champion": promotion["champion_version"]}
    if promotion["decision"] == "promoted":
        facts = {"champion": promotion["version"], "champion before": promotion["champion_version"]}
    comparison = promotion["comparison"]
    if comparison is not None:
        facts |= {
            "benchmark": comparison["benchmark"],
            "statistic": comparison["statistic"],
            "gain in points": round(comparison["gain"], 2),
            "lower bound of the gain": round(comparison["interval"][0], 2),
            "confidence": comparison["confidence"],
        }
    return Event(promotion["decision"], run, promotion["model"], promotion["version"], promotion["reason"], facts)
