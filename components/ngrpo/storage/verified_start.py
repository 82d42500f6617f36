"""Start a server only on the very files that were registered: `python -m ngrpo.storage.verified_start DIRECTORY DIGEST ARGUMENT...`.

What brings files into a pod reads an address, and does not look at what lies there. This does, and becomes `python ARGUMENT...` then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ngrpo.storage.digest import model_digest


def main(arguments: Sequence[str]) -> None:
    """Become the server, or end with a line that says which files lie there."""
    directory, digest, *rest = arguments
    found = model_digest(Path(directory))
    if found != digest:
        sys.exit(
            f"model directory {directory}: the files are not those that were registered (digest {found} instead of {digest}): restore "
            "them, or deploy another version"
        )
    os.execv(sys.executable, [sys.executable, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
