"""Events of runs and models. They may leave the machine, so they contain no credentials, prompts or answers."""

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
    """Name of a local run, or id of a run on a cluster; None if a person acted on a model."""
    model_name: str | None
    """Registered model."""
    version: int | None
    """Version of that model."""
    summary: str
    """One sentence."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """Further details, by name."""


def decided(promotion: Promotion, run: str | None) -> Event | None:
    """Return the event of a promotion decision; None if the model already was the champion."""
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
        run: The run that deployed it; None if a person did.
        reason: Why, in one sentence.
        differences: Endpoint minus stage in percentage points, for the benchmarks that were measured.
        kept: Whether the deployment was kept.
    """
    facts = {f"{name}: points off": round(each["value"], 2) for name, each in differences.items()}
    return Event("deployed" if kept else "not_deployed", run, model_name, version, reason, facts)
