"""Imports of what nobody here has a use for, left out: they take as long as all the others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = ("sklearn", "scipy")
"""transformers imports them where they are installed: for assisted generation, with pandas, and for the loss of detectors of objects."""


@contextmanager
def light_imports() -> Iterator[None]:
    """Hide what has no use here while something is imported. Nothing of ours that is imported then may need it."""
    hidden = [name for name in _UNUSED if name not in sys.modules]
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
