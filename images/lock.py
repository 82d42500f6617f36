"""Write `cpu.txt` and `gpu.txt`: every package of an image with version and hashes, for Linux on x86-64 (`make lock-images`).

The CPU image holds what the tests ran with, `requirements/lock.txt`. The GPU image shares our direct dependencies with it; what vLLM needs
beside them has versions of its own. uv reads where packages come from in its own variables (`UV_INDEX`, `UV_FIND_LINKS`).
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

IMAGES = Path(__file__).parent
ROOT = IMAGES.parent
LOCK = ROOT / "requirements" / "lock.txt"
TORCH_WITHOUT_CUDA = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"cpu": ("pipeline", "local", "postgresql"), "gpu": ("pipeline", "vllm")}


def main() -> None:
    """Resolve the images that are named, by default both."""
    with tempfile.TemporaryDirectory() as directory:
        direct = Path(directory) / "direct.txt"
        direct.write_text(_direct_pins())
        constraints = {"cpu": LOCK, "gpu": direct}
        for image in sys.argv[1:] or constraints:
            _compile(image, constraints[image])


def _compile(image: str, constraints: Path) -> None:
    extras = [option for extra in EXTRAS[image] for option in ("--extra", extra)]
    cpu = image == "cpu"
    index = ["--extra-index-url", TORCH_WITHOUT_CUDA] if cpu and "UV_INDEX" not in os.environ else []
    subprocess.run(
        [
            *("uv", "pip", "compile", str(ROOT / "pyproject.toml"), "-", *extras, "--constraints", str(constraints)),
            *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36", "--generate-hashes"),
            *("--index-strategy", "unsafe-best-match", "--no-annotate", "--no-header", "--quiet", *index),
            *("--output-file", str(IMAGES / f"{image}.txt")),
        ],
        # What builds our own package; and of torch the build without CUDA, which its local version tells.
        input="setuptools\ntorch==2.13.0+cpu\n" if cpu else "setuptools\n",
        text=True,
        check=True,
    )


def _direct_pins() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {_name(each) for each in (*project["dependencies"], *project["optional-dependencies"]["pipeline"])}
    return "\n".join(line for line in LOCK.read_text().splitlines() if line[:1] != "#" and _name(line) in wanted)


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


if __name__ == "__main__":
    main()
