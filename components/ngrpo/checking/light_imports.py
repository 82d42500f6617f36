"""Imports of what a check has no use for, left out: they take as long as the check itself."""

from __future__ import annotations

import importlib
import sys


def import_transformers() -> None:
    """Import the part of transformers that loads models, without scikit-learn: assisted generation alone looks at it."""
    name = "sklearn"
    if name in sys.modules:
        return
    # What is None here is not found by whoever looks for it.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        importlib.import_module("transformers.generation.candidate_generator")
    finally:
        del sys.modules[name]
