"""Rewards of training: functions of the user, and the ready ones with their options."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import regex
from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema, model_validator

from ngrpo.config.code import UserCode
from ngrpo.section import Flag, Line, NonEmpty, Section, Tokens, number

RESERVED = frozenset(
    {
        "answer",
        "completion_ids",
        "completions",
        "environments",
        "id",
        "log_extra",
        "log_metric",
        "prompts",
        "trainer_state",
    }
)
"""Arguments that TRL passes to every reward, so that they are none of its options."""
_LARGEST_OPTION = 10**12
_LONGEST_OPTION = 10_000


def _check_pattern(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


def _check_weight(weight: float) -> float:
    if weight == 0:
        raise ValueError(
            "a reward of weight 0 is computed and not used: leave the reward out, or give it another weight"
        )
    return weight


def _check_option(value: Any) -> Any:
    """Return the value of an option as the plain type that it is."""
    if isinstance(value, list) and not any(isinstance(each, list) for each in value):
        return [_check_option(each) for each in value]
    if isinstance(value, str):
        fits = len(value) <= _LONGEST_OPTION
        value = str(value)
    else:
        fits = isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) <= _LARGEST_OPTION
    if not fits:
        raise ValueError("an option is true, false, a number up to 10^12, a text or a list of them")
    return value


Option = Annotated[
    Any,
    AfterValidator(_check_option),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "number", "minimum": -_LARGEST_OPTION, "maximum": _LARGEST_OPTION},
                {"type": "string", "maxLength": _LONGEST_OPTION},
                {"type": "array"},
            ]
        }
    ),
]


class NoOptions(Section):
    """Options of `correctness` and `letter`: none."""


class FormatOptions(Section):
    """Options of `format`."""

    thought: Flag = True
    """The response has one thought, `<think>...</think>`, at its beginning; `<think>` may be part of the prompt."""
    boxed: Flag = True
    r"""After it there is an answer in \boxed{}."""


class ExactOptions(Section):
    """Options of `exact`."""

    ignore_case: Flag = False
    """Take capital letters and small ones for the same."""


class RegexOptions(Section):
    """Options of `regex`."""

    pattern: Annotated[NonEmpty, AfterValidator(_check_pattern)]
    """Regular expression that is looked for in the response. If it has a group `(?P<answer>...)`, what that group holds at the last place
    must be the gold answer; without, it is enough that the expression is found."""


class JsonOptions(Section):
    """Options of `json`."""

    key: Line | None = None
    """Compare the value of this key of the response's object with the gold answer; without, the whole of what the response holds."""


class OverlongOptions(Section):
    """Options of `overlong`."""

    max_tokens: Tokens | None = None
    """Length at which the punishment is complete, -1; by default `rollout.max_tokens`."""
    buffer: Tokens | None = None
    """Tokens before it over which the punishment grows from 0; by default a fifth of `max_tokens`."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.max_tokens is not None and self.buffer is not None and self.buffer > self.max_tokens:
            raise ValueError(f"buffer={self.buffer} must not exceed max_tokens={self.max_tokens}")
        return self


READY: Mapping[str, type[Section]] = {
    "correctness": NoOptions,
    "format": FormatOptions,
    "letter": NoOptions,
    "exact": ExactOptions,
    "regex": RegexOptions,
    "json": JsonOptions,
    "overlong": OverlongOptions,
}
"""Options of each ready reward."""

OF_ONE_ANSWER = ("letter", "exact", "regex", "json")
"""Ready rewards that look at the gold answer themselves, and know one."""


class RewardConfig(UserCode):
    """One reward: a ready one, or a function of the user's with the signature that TRL has for rewards."""

    ready: ClassVar[tuple[str, ...]] = tuple(READY)

    weight: Annotated[float, number(least=-1e6, most=1e6), AfterValidator(_check_weight)] = 1.0
    """Factor of the reward in the sum of rewards; negative for a penalty."""
    options: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Option] = {}
    """Further arguments of the function, by name."""

    @model_validator(mode="after")
    def _taken(self) -> Self:
        if self.function in READY:
            self.ready_options()
        for name in self.options:
            if name in RESERVED:
                raise ValueError(
                    f"options.{name}={self.options[name]!r}: TRL passes {name} to every reward: rename the argument"
                )
        return self

    def ready_options(self) -> Any:
        """Return the options of a ready reward, as its section in `READY`.

        Raises:
            ValueError: They are not its options.
        """
        section = READY[self.function]
        try:
            return section.model_validate(self.options)
        except ValidationError as error:
            known = list(section.model_fields)
            raise ValueError("\n".join(_explain(self.function, each, known) for each in error.errors())) from error


def named(table: Any) -> Any:
    """Return a table of rewards in which those without a function have the ready one that they are called like."""
    if not isinstance(table, dict):
        return table
    return {
        name: {"function": name} | value if isinstance(value, dict) and isinstance(name, str) else value
        for name, value in table.items()
    }


def _explain(function: str, error: Any, known: list[str]) -> str:
    path = ".".join(["options", *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path}={error['input']!r}: no option of {function}, which has {', '.join(known) or 'none'}{hint}"
    if error["type"] == "missing":
        return f"{path}: missing; {function} needs it"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}.{message}" if len(error["loc"]) == 0 else f"{path}={error['input']!r}: {message}"
