"""Load the problems of any source."""

from __future__ import annotations

from ngrpo.config import ArithmeticSource, CountdownSource, FilesSource, HubSource, ReasoningGymSource, Source
from ngrpo.data import arithmetic, countdown, files, hub, reasoning_gym
from ngrpo.data.problem import Problem


def load_problems(source: Source) -> list[Problem]:
    """Return the problems of a source, in an order that depends only on the source.

    Raises:
        DataError: The source cannot be read, is empty, or does not match its settings.
        StoreError: The object store that holds the source cannot be reached or refuses the credentials.
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
    """Return the first `count` problems of a source, generating or reading few more; see `load_problems`."""
    if isinstance(source, HubSource):
        return hub.first(source, count)
    if isinstance(source, FilesSource):
        return files.load(source.model_copy(update={"limit": min(count, source.limit or count)}))
    return load_problems(source.model_copy(update={"size": min(count, source.size)}))
