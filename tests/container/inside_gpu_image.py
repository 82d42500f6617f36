"""Run inside the GPU image, without a GPU: what cannot be imported or compiled ends it with a traceback."""

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files, requires, version
from pathlib import Path

LEFT_OUT = ("fastapi_cloud_cli", "sentry_sdk")
"""What vLLM asks for by `fastapi[standard]` and nothing here uses: FastAPI's cloud and its error reporter."""
HOPPER = "9.0a"
"""The GPU for which kernels are compiled; those of the paged cache are the quickest to compile."""


def main() -> None:
    """Check the packages, the imports, and the compilers of kernels."""
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True)
    print(subprocess.run([sys.executable, "-m", "pip", "--version"], check=True, capture_output=True, text=True).stdout)

    import torch
    from vllm import LLM
    from vllm.utils.flashinfer import has_flashinfer

    print(f"torch {torch.__version__} (CUDA {torch.version.cuda}), vllm {version('vllm')}, triton {version('triton')}")
    ours = modules("ngrpo")
    for name in ours:
        importlib.import_module(name)
    print(f"{len(ours)} modules of ours and {LLM.__module__} import")

    assert "fastapi[standard]" in " ".join(requires("vllm") or ()), "vLLM no longer asks for fastapi[standard]"
    for name in LEFT_OUT:
        assert importlib.util.find_spec(name) is None, f"{name} is in the image"

    assert has_flashinfer(), "vLLM does not use FlashInfer"
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = HOPPER
    from flashinfer.jit.page import gen_page_module

    began = time.monotonic()
    kernels = gen_page_module()
    kernels.build(verbose=False)
    assert "libcudart.so.13" in needed(str(kernels.jit_library_path))
    print(f"FlashInfer {version('flashinfer-python')}: paging kernels compiled in {time.monotonic() - began:.0f} s")

    with tempfile.TemporaryDirectory() as directory:
        calls_driver = Path(directory) / "calls_driver.so"
        home = os.environ["CUDA_HOME"]
        subprocess.run(
            [
                *("c++", "-shared", "-fPIC", "-x", "c++", f"-I{home}/include", "-o", str(calls_driver), "-"),
                *(f"-L{home}/lib64/stubs", "-lcuda"),
            ],
            input="#include <cuda.h>\nint call() { return cuMemFree(0) + cuInit(0); }\n",
            text=True,
            check=True,
        )
        assert "libcuda.so.1" in needed(str(calls_driver)), "the driver's library would not be loaded"
    print("what calls the driver links to it")


def needed(library: str) -> list[str]:
    """Return the libraries that a shared library loads."""
    shown = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True)
    return re.findall(r"NEEDED.*\[(.*)\]", shown.stdout)


def modules(distribution: str) -> list[str]:
    """Return the names of the modules that a distribution installs."""
    paths = [path.with_suffix("").parts for path in files(distribution) or () if path.suffix == ".py"]
    return sorted(".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths)


if __name__ == "__main__":
    main()
