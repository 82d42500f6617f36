"""How many problems the benchmarks have that the presets name, by their id on the hub: nothing is downloaded to plan a run."""

from __future__ import annotations

from collections.abc import Mapping

from ngrpo.config import Source

_PROBLEMS: Mapping[str, int] = {
    "math-ai/aime24": 30,
    "math-ai/aime25": 30,
    "math-ai/amc23": 40,
    "HuggingFaceH4/MATH-500": 500,
    "Idavidrein/gpqa": 198,  # its subset `gpqa_diamond`
}
"""From the cards of the data sets."""


def problems_of(source: Source) -> int | None:
    """Return how many problems a source has, None where nothing here says it."""
    said = getattr(source, "size", None) or getattr(source, "limit", None)
    known = _PROBLEMS.get(getattr(source, "id", ""))
    return said or known


def problems_in(sources: Mapping[str, Source]) -> int | None:
    """Return how many problems several sources have together, None where one of them is not known."""
    each = [problems_of(source) for source in sources.values()]
    return None if None in each else sum(size or 0 for size in each)
