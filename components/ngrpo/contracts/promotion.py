"""`promotion.json` of the stage `model_promotion`: what was decided on a model, and on what evidence."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Literal,
    NotRequired,  # pydantic refuses the one of `typing` before Python 3.12
)

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from ngrpo.contracts.evaluation import Interval
from ngrpo.contracts.layout import read_layout, write_json

PROMOTION = "promotion.json"


class Comparison(TypedDict):
    """Two models on one benchmark, in percentage points; see `ngrpo.evaluation.gate`.

    Where an evaluation stopped early, `planned_samples` of each problem were planned, and the interval is the one that is foreseen of them.
    """

    benchmark: str
    statistic: str
    candidate: FiniteFloat
    champion: FiniteFloat
    gain: FiniteFloat
    interval: Interval
    p_value: FiniteFloat
    confidence: FiniteFloat
    n_problems: int
    n_samples: int
    tolerated: NotRequired[FiniteFloat]
    planned_samples: NotRequired[int]


class GradedAgain(TypedDict):
    """How many stored samples were graded again, and how many verdicts changed."""

    samples: int
    changed: int


class Evidence(Comparison):
    """The comparison that decides, and those that must not show a loss.

    Where an evaluation stopped early, `settled` says whether the verdict is that of all samples.
    """

    min_gain: FiniteFloat
    against: str
    regressions: dict[str, Comparison]
    settled: NotRequired[bool]
    graded_again: NotRequired[dict[str, GradedAgain]]


class Verdict(TypedDict):
    """A decision and why; `comparison` is none where nothing was compared."""

    decision: Literal["promoted", "kept", "unchanged"]
    reason: str
    comparison: Evidence | None


class Signed(TypedDict):
    """By which key a version was signed, as the sha256 of the public key, and the files that say so beside it in the registry."""

    key: str
    files: list[str]


class Promotion(Verdict):
    """The file: the verdict, the model's version in the registry and its alias, and the champion that it met.

    `signed` is none where the version is unsigned, and missing in files of earlier versions of the library.
    """

    layout: Literal[1]
    model: str
    version: int
    alias: str
    champion_version: int | None
    signed: NotRequired[Signed | None]


def write_promotion(artifact: Path, promotion: Promotion) -> None:
    """Write a decision into the artifact of its stage."""
    write_json(artifact / PROMOTION, promotion)


def read_promotion(artifact: Path, cure: str) -> Promotion:
    """Return a decision.

    Raises:
        StoreError: The file cannot be read, is damaged or of another layout.
    """
    return read_layout(artifact / PROMOTION, Promotion, cure=cure)
