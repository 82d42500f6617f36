"""Number of problems in the benchmarks of the presets, by hub id, because planning downloads nothing."""

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
"""From the data set cards."""


def problems_of(source: Source) -> int | None:
    """Return the number of problems of a source, or None if it is unknown."""
    said = getattr(source, "size", None) or getattr(source, "limit", None)
    known = _PROBLEMS.get(getattr(source, "id", ""))
    return said or known


def problems_in(sources: Mapping[str, Source]) -> int | None:
    """Return the total number of problems of several sources, or None if one of them is unknown."""
    each = [problems_of(source) for source in sources.values()]
    return None if None in each else sum(size or 0 for size in each)
