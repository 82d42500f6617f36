"""Import MLflow in the background, which takes a second or two, while a command starts its object store and makes its plan."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Collection

from ngrpo.checking.light_imports import UNUSED_BY_MLFLOW, light_imports


def tracking_ahead(module: str, unused: Collection[str] = UNUSED_BY_MLFLOW) -> threading.Thread:
    """Import a module of `ngrpo.tracking` in the background, without libraries that MLflow imports but does not need here.

    Args:
        module: Dotted name of the module.
        unused: Modules that are hidden from all threads meanwhile (`light_imports`).

    Returns:
        The thread. Join it before importing anything that may need the hidden modules.
    """
    thread = threading.Thread(target=_import, args=(module, unused), daemon=True)
    thread.start()
    return thread


def _import(module: str, unused: Collection[str]) -> None:
    with light_imports(unused):
        importlib.import_module(module)
