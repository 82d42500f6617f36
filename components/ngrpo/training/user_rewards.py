"""Rewards that users write, as TRL calls them: what they return is checked, and they work on copies of what training goes on with."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ngrpo.config.rewards import RewardConfig
from ngrpo.errors import UserCodeError
from ngrpo.user_code import load
from ngrpo.user_code.loading import place, said

_SEARCH_SECONDS = 10.0
"""Time for finding out which sample a function fails with: it may wait for a network."""
_LARGEST = 3.4028234663852886e38
"""Largest number of float32, in which TRL keeps rewards."""
_OF_THE_TRAINER = ("completion_ids", "completions", "log_extra", "log_metric", "prompts", "trainer_state")

Arguments = dict[str, Any]


class UserReward:
    """A function of the user's, or an instance of a class of the user's."""

    def __init__(self, name: str, reference: RewardConfig, function: Callable[..., Any]):
        """Wrap a function that has its options already.

        Args:
            name: What TRL calls it in its logs.
            reference: Its settings, for messages.
            function: The function.
        """
        self.__name__ = name
        self._reference = reference
        self._function = function

    def __call__(self, **arguments: Any) -> list[float | None]:
        """Reward a rollout batch.

        Args:
            **arguments: What TRL passes.

        Raises:
            UserCodeError: The function raised an error, or returned something else than a number or none for each sample.
        """
        try:
            values = _listed(self._function(**copied(arguments)))
        except KeyboardInterrupt:
            raise
        except (
            BaseException
        ) as error:  # a function of the user's can raise whatever Python can; libraries have such for a time-out
            for sample, alone in _samples(arguments):
                try:
                    _listed(self._function(**alone))
                except KeyboardInterrupt:
                    raise
                except BaseException as again:
                    raise self._raised(again, sample) from again
            raise self._raised(error) from error
        return self._checked(values, arguments)

    def _raised(self, error: BaseException, sample: object = None) -> UserCodeError:
        which = "" if sample is None else f"sample {sample!r}: "
        return UserCodeError(
            f"training.rewards.{self.__name__}: {which}{self._reference.function} raised {place(error, self._reference)}"
            f"{said(error)}: correct the function; None leaves a sample out"
        )

    def _checked(self, values: Any, arguments: Arguments) -> list[float | None]:
        ids = sample_ids(arguments)
        returned = f"training.rewards.{self.__name__}: {self._reference.function} returned"
        coroutines = [each for each in (values if isinstance(values, list) else [values]) if inspect.iscoroutine(each)]
        if coroutines:
            for each in coroutines:
                each.close()  # or Python warns that nobody awaited it
            raise UserCodeError(f"{returned} a coroutine: write `async def` before the function, and await it there")
        if not isinstance(values, list) or len(values) != len(ids):
            what = f"{len(values)} rewards" if isinstance(values, list) else f"a value of type {type(values).__name__}"
            raise UserCodeError(
                f"{returned} {what} for {len(ids)} samples, the first of which is {ids[0]!r}: return a list with one for each completion"
            )
        numbers = []
        for sample, value in zip(ids, values, strict=True):
            try:
                numbers.append(_number(value))
            except ValueError as error:
                raise UserCodeError(
                    f"{returned} {error} for sample {sample!r}: return a finite number for each completion, or None to leave a sample out"
                ) from error
        return numbers


class AsyncUserReward(UserReward):
    """One that is asynchronous: TRL awaits all of them together."""

    async def __call__(self, **arguments: Any) -> list[float | None]:  # type: ignore[override]
        """Reward a rollout batch; see `UserReward`."""
        try:
            values = _listed(await self._function(**copied(arguments)))
        except BaseException as error:  # as above
            if _stops(error):
                raise
            for sample, alone in _samples(arguments):
                try:
                    _listed(await self._function(**alone))
                except BaseException as again:
                    if _stops(again):
                        raise
                    raise self._raised(again, sample) from again
            raise self._raised(error) from error
        return self._checked(values, arguments)


def user_reward(name: str, reference: RewardConfig, columns: Sequence[str], work: Path) -> UserReward:
    """Import a reward of the user's.

    Args:
        name: Its name.
        reference: Its settings.
        columns: Columns of the data set, which TRL passes too.
        work: Directory of the stage.

    Raises:
        UserCodeError: It cannot be imported, or does not take its options or what TRL passes.
    """
    where = f"training.rewards.{name}"
    try:
        function = load(reference, work)
    except UserCodeError as error:
        raise UserCodeError(f"{where}: {error}") from error
    passed = {*_OF_THE_TRAINER, *columns} - {"prompt"}
    twice = sorted(passed & reference.options.keys())
    if twice:
        raise UserCodeError(f"{where}: options.{twice[0]}: TRL passes {twice[0]} to every reward: rename the argument")
    if isinstance(function, type):
        _require_takes(where, function, reference.options)
        try:
            function = function(**reference.options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as above
            raise UserCodeError(
                f"{where}: {reference.function} raised {place(error, reference)}{said(error)}: correct the class, or its options"
            ) from error
        if not callable(function):
            raise UserCodeError(
                f"{where}: {reference.function} is a class without __call__: write one, or name a function"
            )
        options: Mapping[str, Any] = {}
    else:
        options = reference.options
        _require_takes(where, function, options)
        function = partial(function, **options) if options else function
    _require_called(where, reference, function, passed)
    kind = AsyncUserReward if _is_async(function) else UserReward
    return kind(name, reference, function)


def _stops(error: BaseException) -> bool:
    """Say whether an error stops the process or the task, and is nothing that an asynchronous function raised by itself."""
    task = asyncio.current_task()
    cancelled = task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit) or (
        isinstance(error, asyncio.CancelledError) and cancelled
    )


def _is_async(function: Callable[..., Any]) -> bool:
    """Say whether TRL awaits what a reward returns (`trl.trainer.utils.is_async_callable`, which takes seconds to import)."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def copied(arguments: Arguments) -> Arguments:
    """Return what a reward may do what it likes with, of the arguments that TRL passes: training goes on with the originals."""
    own = {name: value for name, value in arguments.items() if name not in _OF_THE_TRAINER}
    # Environments are live objects, and belong to the samples.
    copies = {name: value if name == "environments" else copy.deepcopy(value) for name, value in own.items()}
    copies |= {name: copy.deepcopy(arguments[name]) for name in ("prompts", "completions")}
    # Up to millions of numbers, which `deepcopy` looks at one by one.
    copies["completion_ids"] = [list(ids) for ids in arguments["completion_ids"]]
    if "trainer_state" in arguments:
        state = copies["trainer_state"] = copy.copy(arguments["trainer_state"])
        state.log_history = list(state.log_history)
    if "log_metric" in arguments:
        copies["log_metric"] = partial(_log_metric, arguments["log_metric"])
    if "log_extra" in arguments:
        copies["log_extra"] = partial(_log_extra, arguments["log_extra"], len(arguments["prompts"]))
    return copies


def sample_ids(arguments: Arguments) -> list[Any]:
    """Return what the samples of a rollout batch are called: the ids of their problems, or else their places in the batch."""
    return list(arguments.get("id") or range(len(arguments["prompts"])))


def _samples(arguments: Arguments) -> Iterator[tuple[Any, Arguments]]:
    """Yield each sample of a batch as a batch of its own, with its id, as long as there is time; nothing of them is logged."""
    ids, end = sample_ids(arguments), time.monotonic() + _SEARCH_SECONDS
    for row, sample in enumerate(ids):
        if time.monotonic() > end:
            return
        alone = {
            name: [value[row]] if isinstance(value, list) and len(value) == len(ids) else value
            for name, value in arguments.items()
        }
        quiet = {name: _discard for name in ("log_metric", "log_extra") if name in alone}
        yield sample, copied(alone | quiet)


def _listed(returned: Any) -> Any:
    """Return what a reward returned as a list, if it can be one."""
    several = isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping)
    return list(returned) if several else returned


def _discard(name: str, value: Any) -> None:
    """Log nothing."""


def _log_metric(log: Callable[[str, float], None], name: str, value: float) -> None:
    try:
        number = _number(value)
    except ValueError as error:
        raise ValueError(f"log_metric({name!r}, ...) got {error}") from error
    if number is None:
        raise ValueError(f"log_metric({name!r}, ...) got None")
    log(name, number)


def _log_extra(log: Callable[[str, list[Any]], None], size: int, column: str, values: Sequence[Any]) -> None:
    if len(values) != size:
        raise ValueError(f"log_extra({column!r}, ...) got {len(values)} values for {size} samples")
    log(column, list(values))


def _number(value: Any) -> float | None:
    """Return a reward as a number; none stays none.

    Raises:
        ValueError: It is neither; the message says what it is.
    """
    if value is None:
        return None
    plain = value
    if hasattr(value, "item"):  # a number of numpy or torch
        with suppress(TypeError, ValueError, RuntimeError):  # or an array of several
            plain = value.item()
    if not isinstance(plain, int | float):
        raise ValueError(f"a value of type {type(value).__name__}")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(str(plain))
    if abs(plain) > _LARGEST:
        raise ValueError("a number beyond the range of float32")
    return float(plain)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some of those written in C have none
        return None


def _require_takes(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    signature = _signature(function)
    for name in options if signature is not None else ():
        try:
            signature.bind_partial(**{name: None})  # type: ignore[union-attr]
        except TypeError as error:
            raise UserCodeError(f"{where}: options.{name}: no argument of the function: correct its name") from error


def _require_called(where: str, reference: RewardConfig, function: Callable[..., Any], passed: set[str]) -> None:
    signature = _signature(function)
    if signature is None:
        return
    try:
        signature.bind(**dict.fromkeys(passed))
    except TypeError as error:
        raise UserCodeError(
            f"{where}: {reference.function} cannot be called as TRL does ({error}): let it take what it needs of "
            f"{', '.join(sorted(passed))}, and **kwargs for the rest"
        ) from error
