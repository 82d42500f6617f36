"""The GPU image on a machine without a GPU: it is built, everything in it imports, and its compilers make a kernel.

What this cannot show: that a kernel runs.
"""

import subprocess
import time
from pathlib import Path

from images.build import build
from rich.console import Console
from tests.container.engine import size

IMAGE = "ngrpo/gpu:0.1.0"
INSIDE = Path(__file__).with_name("inside_gpu_image.py")
DISABLED = "FlashInfer kernels are disabled"
"""What vLLM says where neither precompiled kernels nor a compiler are found."""


def check(options: list[str], console: Console) -> int:
    """Build the image and run `inside_gpu_image.py` in it, as on a cluster: not root, without a network.

    Args:
        options: Options of `docker build`.
        console: Where results go.

    Returns:
        The exit code: 0 if all is well.
    """
    began = time.monotonic()
    build("gpu", IMAGE, options)
    console.print(f"image {IMAGE}: {size(IMAGE) / 1e9:.2f} GB, built in {time.monotonic() - began:.0f} s")
    layers = ["docker", "history", "--format", "{{.Size}}\t{{.CreatedBy}}", IMAGE]
    for line in subprocess.run(layers, check=True, capture_output=True, text=True).stdout.splitlines():
        if not line.startswith("0B"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    command = ["docker", "run", "--rm", "--network", "none", "--interactive", IMAGE, "python", "-"]
    began = time.monotonic()
    ran = subprocess.run(
        command, input=INSIDE.read_text(encoding="utf-8"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    console.print(ran.stdout, markup=False, highlight=False, soft_wrap=True)
    if ran.returncode or DISABLED in ran.stdout:
        console.print(f"[bold red]FAILED[/]: the image does not hold together (exit code {ran.returncode}), see above")
        return 1
    console.print(f"tried without a GPU in {time.monotonic() - began:.0f} s: all is well")
    return 0
