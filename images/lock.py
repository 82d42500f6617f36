"""Write `cpu.txt`, `gpu.txt` and `pip.txt`: every package of an image with version and hashes, for Linux on x86-64 (`make lock-images`).

An image holds the versions for its kind of machine: the CPU image what the tests ran with, `requirements/cpu.txt`, the GPU image
`requirements/cuda.txt`. `pip.txt` is the pip that installs them. uv reads where packages come from in its own variables
(`UV_INDEX`, `UV_FIND_LINKS`).
"""

import os
import subprocess
import sys
from pathlib import Path

IMAGES = Path(__file__).parent
ROOT = IMAGES.parent
LOCKS = {"cpu": ROOT / "requirements" / "cpu.txt", "gpu": ROOT / "requirements" / "cuda.txt"}
TORCH_WITHOUT_CUDA = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"cpu": ("pipeline", "local", "postgresql", "signing"), "gpu": ("pipeline", "vllm")}
BESIDES = {
    # What builds our own package; and of torch the build without CUDA, which its local version tells.
    "cpu": "setuptools\ntorch==2.13.0+cpu\n",
    # The compiler of FlashInfer's kernels and its headers, of the CUDA release that torch was built with.
    "gpu": "setuptools\ncuda-toolkit[cccl,nvcc]\n",
}


def main() -> None:
    """Resolve the locks that are named, by default all."""
    for name in sys.argv[1:] or (*LOCKS, "pip"):
        if name == "pip":
            _compile(name, "-", requirements="pip\n")
        else:
            _compile(name, *_options(name), requirements=BESIDES[name])


def _options(image: str) -> list[str]:
    extras = [option for extra in EXTRAS[image] for option in ("--extra", extra)]
    index = ["--extra-index-url", TORCH_WITHOUT_CUDA] if image == "cpu" and "UV_INDEX" not in os.environ else []
    # The CPU image has FastAPI for MLflow, which asks for no extra of it.
    overrides = ["--overrides", str(IMAGES / "overrides.txt")] if "vllm" in EXTRAS[image] else []
    return [
        *(str(ROOT / "pyproject.toml"), "-", *extras, "--constraints", str(LOCKS[image]), *overrides),
        *("--index-strategy", "unsafe-best-match", *index),
    ]


def _compile(name: str, *options: str, requirements: str) -> None:
    subprocess.run(
        [
            *("uv", "pip", "compile", *options, "--python-version", "3.11"),
            *("--python-platform", "x86_64-manylinux_2_36", "--generate-hashes"),
            *("--no-annotate", "--no-header", "--quiet", "--output-file", str(IMAGES / f"{name}.txt")),
        ],
        input=requirements,
        text=True,
        check=True,
    )


if __name__ == "__main__":
    main()
