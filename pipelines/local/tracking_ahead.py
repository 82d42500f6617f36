"""MLflow, imported while a command starts its object store and makes its plan: it takes a second or two."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Collection

from ngrpo.checking.light_imports import UNUSED_BY_MLFLOW, light_imports


def tracking_ahead(module: str, unused: Collection[str] = UNUSED_BY_MLFLOW) -> threading.Thread:
    """Import a module of `ngrpo.tracking` in the background, without what MLflow imports for others.

    Args:
        module: Its dotted name.
        unused: What is hidden meanwhile, from every thread (`light_imports`).

    Returns:
        The thread, to be joined before anything is imported that may need what is hidden.
    """
    thread = threading.Thread(target=_import, args=(module, unused), daemon=True)
    thread.start()
    return thread


def _import(module: str, unused: Collection[str]) -> None:
    with light_imports(unused):
        importlib.import_module(module)
