"""Write `cuda.txt`: versions for a machine with an NVIDIA driver, those of `cpu.txt` where torch and vLLM for CUDA ask for no other."""

import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HEADER = (
    "# Versions for a machine with an NVIDIA driver, those of cpu.txt where CUDA asks for no other; used as pip constraints. "
    "Written by: make lock\n"
)
_OTHER_BUILDS = re.compile(r"#|torch\b|triton\b|vllm")


def main() -> None:
    """Resolve the extras that the Makefile installs on such a machine; only metadata is fetched."""
    shared = [
        line for line in (HERE / "cpu.txt").read_text().splitlines(keepends=True) if not _OTHER_BUILDS.match(line)
    ]
    with tempfile.TemporaryDirectory() as directory:
        # Versions that are in its output file uv keeps where it can.
        resolved = Path(directory) / "cuda.txt"
        resolved.write_text("".join(shared))
        extras = [option for extra in ("pipeline", "local", "dev", "vllm") for option in ("--extra", extra)]
        subprocess.run(
            [
                *("uv", "pip", "compile", str(HERE.parent / "pyproject.toml"), "-", *extras),
                *(
                    "--output-file",
                    str(resolved),
                    "--python-version",
                    "3.11",
                    "--python-platform",
                    "x86_64-manylinux_2_36",
                ),
                *("--no-annotate", "--no-header", "--quiet"),
            ],
            # nvcc and its headers, of the CUDA release that torch was built with; what asks for them takes any.
            input="cuda-toolkit[cccl,nvcc]\n",
            text=True,
            check=True,
        )
        # vLLM asks for another setuptools on each version of Python.
        lines = [line for line in resolved.read_text().splitlines(keepends=True) if not line.startswith("setuptools==")]
        (HERE / "cuda.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
