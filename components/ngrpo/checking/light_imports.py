"""Imports of what nobody here has a use for, left out: they take as long as all the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

_UNUSED = ("sklearn", "scipy")
"""transformers imports them where they are installed: for assisted generation, with pandas, and for the loss of detectors of objects."""

UNUSED_BY_MLFLOW = ("pandas", "pyarrow", "scipy", "sklearn")
"""MLflow imports them where they are installed, for data sets and signatures of models that are none of ours (mlflow-skinny lacks them)."""

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
