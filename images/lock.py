"""Write `cpu.txt` and `gpu.txt`: every package of an image with version and hashes, for Linux on x86-64 (`make lock-images`).

An image holds the versions of a machine of its kind: the CPU image what the tests ran with, `requirements/cpu.txt`, the GPU image
`requirements/cuda.txt`. uv reads where packages come from in its own variables (`UV_INDEX`, `UV_FIND_LINKS`).
"""

import os
import subprocess
import sys
from pathlib import Path

IMAGES = Path(__file__).parent
ROOT = IMAGES.parent
LOCKS = {"cpu": ROOT / "requirements" / "cpu.txt", "gpu": ROOT / "requirements" / "cuda.txt"}
TORCH_WITHOUT_CUDA = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"cpu": ("pipeline", "local", "postgresql"), "gpu": ("pipeline", "vllm")}


def main() -> None:
    """Resolve the images that are named, by default both."""
    for image in sys.argv[1:] or LOCKS:
        _compile(image)


def _compile(image: str) -> None:
    extras = [option for extra in EXTRAS[image] for option in ("--extra", extra)]
    cpu = image == "cpu"
    index = ["--extra-index-url", TORCH_WITHOUT_CUDA] if cpu and "UV_INDEX" not in os.environ else []
    subprocess.run(
        [
            *("uv", "pip", "compile", str(ROOT / "pyproject.toml"), "-", *extras, "--constraints", str(LOCKS[image])),
            *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36", "--generate-hashes"),
            *("--index-strategy", "unsafe-best-match", "--no-annotate", "--no-header", "--quiet", *index),
            *("--output-file", str(IMAGES / f"{image}.txt")),
        ],
        # What builds our own package; and of torch the build without CUDA, which its local version tells.
        input="setuptools\ntorch==2.13.0+cpu\n" if cpu else "setuptools\n",
        text=True,
        check=True,
    )


if __name__ == "__main__":
    main()
