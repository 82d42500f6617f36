"""Base class and field types of the sections of the configuration."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LONGEST_NAME = 64  # stated in `_ALLOWED` too
# Names that Windows reserves, with any extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ALLOWED = "consists of at most 64 letters (a-z, A-Z), digits, '.', '_' and '-', begins with a letter or digit, does not end with '.'"


def count(least: int, most: int) -> Any:
    """Return a field for an integer from `least` to `most`. It refuses `true`, text and 2.0."""
    return Field(strict=True, ge=least, le=most)


def number(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> Any:
    """Return a field for a number: `above` and `below` are exclusive limits, `least` and `most` inclusive. It refuses `true` and text."""
    return Field(strict=True, gt=above, ge=least, lt=below, le=most)


def unless_set(default: Any) -> Any:
    """Return a field that the settings' JSON contains only if it differs from its default.

    For settings that few runs use: adding one does not change the keys of the other runs.
    """
    return Field(default=default, exclude_if=lambda value: bool(value == default))


def check_name(text: str) -> str:
    """Return a name if it is valid as a file, a metric, a key in object storage and a registered model.

    Raises:
        ValueError: It is not valid; the message says what is allowed, and suggests a similar name.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(?<!\.)", text) is None or len(text) > _LONGEST_NAME:
        close = slug(text)[:_LONGEST_NAME].rstrip("-")
        raise ValueError(f"a name {_ALLOWED}" + (f"; for example {close}" if close else ""))
    if _RESERVED.fullmatch(text):
        raise ValueError("Windows reserves this name, so it cannot be the name of a file; choose another")
    return text


def slug(text: str) -> str:
    """Return a text with `-` in place of characters unsuitable in names of files and dotted settings: `AIME (2024)` is `AIME-2024`."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return re.sub(r"[^A-Za-z0-9_-]+", "-", letters).strip("-")


def keep_apart(table: Any) -> Any:
    """Return a table if its keys are different file names, also on a file system that ignores case.

    Raises:
        ValueError: Two keys would be the same file.
    """
    seen: dict[str, str] = {}
    for spelling in table if isinstance(table, Mapping) else ():
        name = slug(spelling) if isinstance(spelling, str) else ""
        if name and seen.setdefault(name.lower(), spelling) != spelling:
            raise ValueError(
                f"{seen[name.lower()]!r} and {spelling!r} would be the same file, {name.lower()}: rename one"
            )
    return table


def name_of(spelling: Any) -> Any:
    """Return the name (`slug`) for a spelling that is one printable line and begins with a letter or a digit; others are returned as is."""
    free = isinstance(spelling, str) and spelling.isprintable() and spelling[:1].isalnum()
    return (slug(spelling) or spelling) if free else spelling


def check_text(text: str) -> str:
    """Return a text if it has no control characters other than line breaks and tabs.

    Raises:
        ValueError: It has some.
    """
    if _CONTROL.search(text):
        raise ValueError("a text may not contain control characters other than line breaks and tabs; remove them")
    return text


def _check_line(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("write one line without control characters, and without spaces around it")
    return text


def check_store(uri: str) -> str:
    """Return an address if it is one in object storage, `s3://bucket/prefix`.

    Raises:
        ValueError: It is not.
    """
    scheme, _, place = uri.partition("://")
    bucket, *parts = place.removesuffix("/").split("/")
    if (
        scheme != "s3"
        or re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", bucket) is None
        or any(re.fullmatch(r"[A-Za-z0-9!_.*'()=+@,:~-]+", part) is None or part in (".", "..") for part in parts)
    ):
        raise ValueError(
            "write s3://bucket/prefix, in the prefix only letters, digits and !_.*'()=+@,:~- and no part '.' or '..'"
        )
    return uri


def _check_day(value: Any) -> Any:
    """Accept a date of TOML, or one written as text; nothing else that pydantic would convert to a date, like a number of seconds."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value) and value >= "1000":
        with suppress(ValueError):
            return date.fromisoformat(value)
    if type(value) is not date:
        raise ValueError("a day is written YYYY-MM-DD, for example 2024-07-26")
    return value


def _check_temperature(value: float) -> float:
    if value < 1e-3:
        raise ValueError("a temperature is at least 0.001: scores divided by less overflow")
    return value


# The upper limits are far above sensible settings: they catch typing errors before these cost hours or all memory.
Positive = Annotated[int, count(1, 1_000_000_000)]
NonNegative = Annotated[int, count(0, 1_000_000_000)]
Steps = Annotated[int, count(1, 10_000_000)]
StepsOrNone = Annotated[int, count(0, 10_000_000)]
Sequences = Annotated[int, count(1, 1_000_000)]
Tokens = Annotated[int, count(1, 10_000_000)]
Problems = Annotated[int, count(1, 100_000_000)]
Samples = Annotated[int, count(1, 100_000)]
Seed = Annotated[int, count(0, 2**32 - 1)]
"""NumPy accepts no larger seed."""
GiB = Annotated[int, count(1, 1_000_000)]
Flag = Annotated[bool, Field(strict=True)]
Probability = Annotated[float, number(least=0.0, most=1.0)]
Nucleus = Annotated[float, number(above=0.0, most=1.0)]
LearningRate = Annotated[float, number(above=0.0, most=1.0)]
Temperature = Annotated[float, number(above=0.0, most=100.0), AfterValidator(_check_temperature)]
Coefficient = Annotated[float, number(least=0.0, most=100.0)]
Points = Annotated[float, number(least=0.0, most=100.0)]
"""Percentage points."""
Confidence = Annotated[float, number(above=0.5, below=1.0)]

Day = Annotated[date, BeforeValidator(_check_day)]

Name = Annotated[str, AfterValidator(check_name)]
"""A name that becomes part of a path, of a key, or of the name of a metric or a model."""
Spelled = Annotated[Name, BeforeValidator(name_of)]
"""A name that users may spell with other characters; `name_of` derives the name. Spellings are kept in `RunConfig.titles`."""
Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_line)]
Text = Annotated[str, Field(max_length=10_000), AfterValidator(check_text)]
NonEmpty = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(check_text)]
LongText = Annotated[str, Field(max_length=100_000), AfterValidator(check_text)]
"""The text of a file."""
StoreURI = Annotated[str, Field(max_length=500), AfterValidator(check_store)]
"""`s3://bucket/prefix`, without parts that have another meaning in an address: `..`, `//`, `?`, `#`, `%` or spaces."""


class Section(BaseModel):
    """A part of the configuration: immutable, and an unknown field is an error."""

    # Validators are built on first use: every command and every stage waits for the import of the configuration.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    unkeyed: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change the result of a stage, and so are not part of its key."""


def refuse(problems: Iterable[str]) -> None:
    """Refuse a section with one error for all its problems.

    Raises:
        ValueError: There is a problem; the message has a line for each.
    """
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))
