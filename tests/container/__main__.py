"""The images on a real Docker engine (`make test-container ARGS="[cpu | gpu] [options of docker build]"`).

`cpu`, the default, runs the tiny pipeline in containers; `gpu` builds the GPU image and tries it without a GPU. Needs root only where it
has to start an engine by itself.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from tests.container import gpu_image, tiny_pipeline
from tests.container.engine import NoEngineError, base_image, engine

from ngrpo.errors import NGRPOError

CHECKS = {"cpu": tiny_pipeline.check, "gpu": gpu_image.check}


def main() -> int:
    """Check the image that is named; further arguments are options of `docker build`."""
    console = Console()
    name, options = (sys.argv[1], sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in CHECKS else ("cpu", sys.argv[1:])
    try:
        with tempfile.TemporaryDirectory(prefix="ngrpo-container-") as directory, engine(Path(directory)):
            return CHECKS[name](["--network", "host", *base_image(Path(directory)), *options], console)
    except NoEngineError as error:
        console.print(f"[bold red]NOT TESTED[/]: {error}")
        return 2
    except NGRPOError as error:
        console.print(f"[bold red]FAILED[/]: {error}")
        return 1
    except subprocess.CalledProcessError as error:
        # Its own words are above, or were caught.
        words = (error.stderr or "").strip().splitlines()[-1:]
        console.print(
            f"[bold red]FAILED[/]: {': '.join([' '.join(error.cmd[:2]), f'exit code {error.returncode}', *words])}"
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
