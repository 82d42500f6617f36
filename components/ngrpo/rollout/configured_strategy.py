"""Make the strategy that the settings name, built in or the user's own."""

from __future__ import annotations

import inspect
import json
import tempfile
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from ngrpo.config import MixingConfig
from ngrpo.config.mixing import StrategyCode
from ngrpo.errors import ConfigError
from ngrpo.mixing.strategies import READY
from ngrpo.mixing.strategy import Strategy, StrategySource
from ngrpo.rollout.strategy_trial import try_strategy
from ngrpo.user_code.loading import load, place, said


def strategy_source(config: MixingConfig) -> StrategySource:
    """Return the source of a configuration's strategy.

    Raises:
        ConfigError: The strategy has no argument of a name in `mixing.options`, or needs one that is not there.
        UserCodeError: Its code cannot be loaded.
    """
    code = config.reference.code if config.reference else {}
    kind = _class_of(config.strategy, json.dumps(code))
    parameters = inspect.signature(kind).parameters
    # Only for built-in strategies: a user's class may have arguments of the same names.
    settings = ("k", "noise_std") if config.reference else type(config).model_fields
    options = {name: getattr(config, name) for name in parameters if name in settings} | config.options
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in options.keys() - parameters.keys():
            known = ", ".join(parameters) or "none"
            raise ConfigError(f"mixing.options.{name}: {config.strategy} has no such argument; it has: {known}")
    for name, parameter in parameters.items():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if named and parameter.default is parameter.empty and name not in options:
            raise ConfigError(f"mixing.options.{name}: is missing; {config.strategy} needs it")
    return StrategySource(config.strategy, options, code)


def source_of(strategy: Strategy) -> StrategySource:
    """Return the source of a strategy whose class is a dataclass, and is a ready one or can be imported."""
    kind = type(strategy)
    own = fields(strategy)  # type: ignore[arg-type]
    options = {each.name: getattr(strategy, each.name) for each in own if each.init}
    ready = next((name for name, one in READY.items() if one is kind), None)
    return StrategySource(ready or f"{kind.__module__}:{kind.__qualname__}", options)


def load_strategy(source: StrategySource) -> Strategy:
    """Make a strategy, one object for equal sources; a user's own strategy is tested first (`try_strategy`).

    Raises:
        ConfigError: It does not do what a strategy must.
        UserCodeError: Its code cannot be loaded.
    """
    return _load(source.function, json.dumps(source.options, sort_keys=True), json.dumps(source.code))


@cache
def _load(function: str, options: str, code: str) -> Strategy:
    kind = _class_of(function, code)
    arguments: dict[str, Any] = json.loads(options)
    try:
        strategy = kind(**arguments)
    except Exception as error:  # a user's class can raise anything
        where = place(error, _reference(function, code))
        raise ConfigError(
            f"mixing.strategy={function!r} refuses its options {options}: {where}{said(error)}"
        ) from error
    if function not in READY:
        try_strategy(strategy, function)
    return strategy


@cache
def _class_of(function: str, code: str) -> type[Strategy]:
    if function in READY:
        return READY[function]
    found = load(_reference(function, code), Path(_directory().name))
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise ConfigError(
            f"mixing.strategy={function!r}: is no subclass of ngrpo.mixing.strategy.Strategy: derive a class from it"
        )
    if inspect.isabstract(found):
        raise ConfigError(f"mixing.strategy={function!r}: has no method decide: write one")
    return found


def _reference(function: str, code: str) -> StrategyCode:
    return StrategyCode(function=function, code=json.loads(code))


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    """A directory for the user's files, until the process ends."""
    return tempfile.TemporaryDirectory(prefix="ngrpo-strategies-")
