"""What happened, in words and figures that may leave the machine: no credential, and nothing of prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ngrpo.config.notifications import EventKind
from ngrpo.contracts.deployment import Difference
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


def deployed(
    model_name: str, version: int, run: str | None, reason: str, differences: Mapping[str, Difference], *, kept: bool
) -> Event:
    """Return the event of a deployment that was kept, refused or failed.

    Args:
        model_name: Registered model.
        version: Its version.
        run: The run that deployed it; none where a person did.
        reason: Why, in one sentence.
        differences: Endpoint less stage by benchmark, as far as that was measured.
        kept: Whether the deployment was kept.
    """
    facts = {f"{name}: points off": round(each["value"], 2) for name, each in differences.items()}
    return Event("deployed" if kept else "not_deployed", run, model_name, version, reason, facts)
