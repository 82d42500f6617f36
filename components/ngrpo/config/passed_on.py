"""Settings that go to TRL and vLLM as they are: checked against the fields of the installed library, whose source is read, not run.

An import of either takes seconds, and vLLM is not installed wherever a run is planned. Where a library is missing, names and types are
left to the stage that has it; what is ours is refused everywhere.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ngrpo.config.foreign_names import (
    OURS_OF_GRPO,
    OURS_OF_SFT,
    OURS_OF_VLLM,
    UNUSED_OF_GRPO,
    UNUSED_OF_SFT,
    UNUSED_OF_VLLM,
)
from ngrpo.section import refuse

_LARGEST = 10**12
_DEEPEST = 5
_LONGEST = 1000


@dataclass(frozen=True)
class Library:
    """A dataclass of a library, whose fields a table may set.

    Attributes:
        name: What users call it.
        classes: The class and those that it inherits from: package, file in it, name.
        ours: By field, what we set it from.
        unused: By field, why it cannot be set.
    """

    name: str
    classes: tuple[tuple[str, str, str], ...]
    ours: Mapping[str, str]
    unused: Mapping[str, str]

    @property
    def package(self) -> str:
        """Name of its package."""
        return self.classes[0][0]

    @property
    def installed(self) -> bool:
        """Whether its fields can be looked up here."""
        return all(_package(package) is not None for package, _, _ in self.classes)

    def fields(self) -> dict[str, ast.expr]:
        """Return the annotations of its fields, by name."""
        return {name: kind for each in reversed(self.classes) for name, kind in _fields(*each).items()}


_TRAINING_ARGUMENTS = (
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("transformers", "training_args.py", "TrainingArguments"),
)
GRPO = Library(
    "TRL's GRPOConfig",
    (("trl", "trainer/grpo_config.py", "GRPOConfig"), *_TRAINING_ARGUMENTS),
    OURS_OF_GRPO,
    UNUSED_OF_GRPO,
)
SFT = Library(
    "TRL's SFTConfig", (("trl", "trainer/sft_config.py", "SFTConfig"), *_TRAINING_ARGUMENTS), OURS_OF_SFT, UNUSED_OF_SFT
)
VLLM = Library("vLLM's EngineArgs", (("vllm", "engine/arg_utils.py", "EngineArgs"),), OURS_OF_VLLM, UNUSED_OF_VLLM)


def check(table: Mapping[str, Any], library: Library) -> None:
    """Refuse what a library has no field for, what does not fit its field, and what is set elsewhere.

    Raises:
        ValueError: There is any; the message has a line for each.
    """
    refuse(_problems(table, library))


def _problems(table: Mapping[str, Any], library: Library) -> Iterator[str]:
    fields = library.fields() if table and library.installed else None
    for name, value in table.items():
        if name in library.ours:
            yield f"{name}={value!r} is set by {library.ours[name]} here: leave it out"
        elif name in library.unused:
            yield f"{name}={value!r} cannot be set: {library.unused[name]}; leave it out"
        elif fields is not None and (name not in fields or name.startswith("_")):
            free = [field for field in fields if field not in library.ours and field not in library.unused]
            close = difflib.get_close_matches(name, free, n=1)
            yield f"{name}={value!r} is not a field of {library.name}" + (
                f"; did you mean {close[0]}?" if close else ": leave it out"
            )
        elif fields is not None and not _fits(value, fields[name]):
            yield f"{name}={value!r} does not fit {library.name}, where it is {ast.unparse(fields[name])}"


def _fits(value: Any, kind: ast.expr) -> bool:
    """Say whether a value can be what an annotation says; of names that are not built in nothing is known."""
    match kind:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return False  # TOML has no null
        case ast.Constant(value=str(text)):
            return _fits(value, ast.parse(text, mode="eval").body)
        case ast.Name(id=name):
            return _PLAIN[name](value) if name in _PLAIN else True
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _fits(value, inner)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=options)):
            return any(_fits(value, option) for option in options)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return value in _constants(inner)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in ("list", "set", "Sequence"):
            return isinstance(value, list) and all(_fits(item, inner) for item in value)
        case ast.Subscript(value=ast.Name(id=name)):
            return _PLAIN[name](value) if name in _PLAIN else True
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "str": lambda value: isinstance(value, str),
    "dict": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
    "tuple": lambda value: isinstance(value, list),
}


def _constants(kind: ast.expr) -> list[Any]:
    parts = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return [part.value for part in parts if isinstance(part, ast.Constant)]


@cache
def _package(name: str) -> Path | None:
    found = find_spec(name)
    return Path(found.origin).parent if found is not None and found.origin is not None else None


@cache
def _fields(package: str, file: str, name: str) -> dict[str, ast.expr]:
    root = _package(package)
    tree = ast.parse((root / file).read_text(encoding="utf-8")) if root is not None else ast.Module([], [])
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.target.id: node.annotation
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _check_value(value: Any, depth: int = 0) -> Any:
    """Refuse what no library takes: it would be in a key, and shown."""
    if isinstance(value, dict | list) and depth < _DEEPEST and len(value) <= _LONGEST:
        for item in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _check_value(item, depth + 1)
        return value
    if isinstance(value, str):
        fits = len(value) <= _LONGEST and value.isprintable()
    else:
        fits = isinstance(value, bool | int | float) and math.isfinite(value) and abs(value) <= _LARGEST
    if not fits:
        raise ValueError(
            "a setting of a library is true, false, a number up to 10^12, one line of text, or a list or table of these"
        )
    return value


Passed = Annotated[bool | int | float | str | list[Any] | dict[str, Any], BeforeValidator(_check_value)]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,99}$")]


def _checked(library: Library) -> AfterValidator:
    def checked(table: dict[str, Any]) -> dict[str, Any]:
        check(table, library)
        return table

    return AfterValidator(checked)


GRPOOptions = Annotated[dict[FieldName, Passed], _checked(GRPO)]
SFTOptions = Annotated[dict[FieldName, Passed], _checked(SFT)]
VLLMOptions = Annotated[dict[FieldName, Passed], _checked(VLLM)]
