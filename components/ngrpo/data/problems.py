"""Load the problems of any source."""

from __future__ import annotations

from ngrpo.config import ArithmeticSource, CountdownSource, FilesSource, HubSource, ReasoningGymSource, Source
from ngrpo.data import arithmetic, countdown, files, hub, reasoning_gym
from ngrpo.data.problem import Problem


def load_problems(source: Source) -> list[Problem]:
    """Return the problems of a source, in an order that depends on nothing but the source.

    Raises:
        DataError: The source cannot be read, is empty, or is not what its settings say.
    """
    if isinstance(source, ArithmeticSource):
        return arithmetic.load(source)
    if isinstance(source, CountdownSource):
        return countdown.load(source)
    if isinstance(source, ReasoningGymSource):
        return reasoning_gym.load(source)
    if isinstance(source, FilesSource):
        return files.load(source)
    return hub.load(source)


def first_problems(source: Source, count: int) -> list[Problem]:
    """Return the first problems of a source, without making or reading many more; see `load_problems`."""
    if isinstance(source, HubSource):
        return hub.first(source, count)
    if isinstance(source, FilesSource):
        return files.load(source.model_copy(update={"limit": min(count, source.limit or count)}))
    return load_problems(source.model_copy(update={"size": min(count, source.size)}))
