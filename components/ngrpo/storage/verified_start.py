"""Start a server if the model's files have the registered digest: `python -m ngrpo.storage.verified_start DIRECTORY DIGEST ARGUMENT...`.

The initializer that downloads files into a pod does not verify them. This module does, and then replaces itself with `python ARGUMENT...`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ngrpo.storage.digest import model_digest


def main(arguments: Sequence[str]) -> None:
    """Verify the files, then exec the server; exit with a one-line error if the digest differs."""
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
