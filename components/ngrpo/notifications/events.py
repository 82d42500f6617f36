"""What happened, in words and figures that may leave the machine: no credential, and nothing of prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ngrpo.config.notifications import EventKind
from ngrpo.contracts.promotion import Promotion
from ngrpo.environment import redacted
from ngrpo.errors import ConfigError, NGRPOError, Preempted, StoreError, TrackingError

Fact = str | int | float | bool | None

_SHAREABLE = (ConfigError, StoreError, TrackingError, Preempted)
"""Errors whose text names settings, places and services. That of the others may quote data, or is not ours."""


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


def reason_of(error: BaseException) -> str:
    """Return why something failed, as far as it may leave the machine.

    An error of the data, of a function of the user's, of an engine or of a library may quote a prompt or an answer: of those only the
    kind is told.
    """
    if isinstance(error, _SHAREABLE):
        return redacted(str(error))
    kind = type(error).__name__
    what = (type(error).__doc__ or "").partition("\n")[0] if isinstance(error, NGRPOError) else ""
    return f"{kind}: {what} The log has its text, which may quote data." if what else f"{kind}; see the log"


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
