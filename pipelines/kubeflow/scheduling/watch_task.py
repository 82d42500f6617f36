"""What a schedule of the watch runs: one look, in the pod of its task."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from ngrpo.config import RunConfig, validate
from ngrpo.environment import addresses_without_users, environment, redacted
from ngrpo.errors import NGRPOError
from ngrpo_kfp.pipelines.local.watching import watch
from ngrpo_kfp.pipelines.local.workspace import Workspace

ALERT, FAILED = 1, 2
"""Exit codes, as those of `ngrpo watch`."""


@addresses_without_users()
def look(tree: dict[str, Any]) -> int:
    """Look at the champion and return the exit code; downloads go to the pod's scratch space.

    Args:
        tree: Configuration of the run that made the champion, with `watch`.
    """
    console = Console(file=sys.stdout, highlight=False)
    home = Path(os.environ.get("NGRPO_WORK_DIR", "outputs")) / "watch"
    try:
        with environment({"NGRPO_HOME": str(home)}):
            seen = watch(validate(RunConfig, tree), Workspace.from_environment(), console)
    except NGRPOError as error:
        print(redacted(str(error)), file=sys.stderr, flush=True)
        return FAILED
    return ALERT if seen.alert else 0
