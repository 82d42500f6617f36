"""The Docker engine of the container tests, and the base image."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngrpo.errors import NGRPOError

BASE = "python:3.11-slim-bookworm"
BASE_OF_DEBIAN = "ngrpo/debian-python:bookworm"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
SECONDS_TO_START = 60


class NoEngineError(NGRPOError):
    """There is no Docker engine, and none can be started."""


@contextmanager
def engine(directory: Path) -> Iterator[None]:
    """Use the Docker engine that runs, or run one for as long as the context is open.

    Raises:
        NoEngineError: None runs, and none can be started.
    """
    if answers():
        yield
        return
    if shutil.which("dockerd") is None or os.getuid() != 0:
        raise NoEngineError(
            "no Docker engine answers, and dockerd is missing or may be started by root alone; start one"
        )
    log = directory / "dockerd.log"
    command = ["dockerd", "--bridge=none", "--iptables=false", "--default-ulimit", "nofile=16384:16384"]
    with log.open("w") as file:
        daemon = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not answers():
            if daemon.poll() is not None or time.monotonic() > deadline:
                words = log.read_text().strip().splitlines() or ["it says nothing"]
                raise NoEngineError(f"dockerd does not start: {words[-1]}")
            time.sleep(0.5)
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()


def base_image(directory: Path) -> list[str]:
    """Return the options that name the base image: the usual one where it can be had, else one made of Debian's packages."""
    own = ["--build-arg", f"BASE={BASE_OF_DEBIAN}"]
    for command, options in (
        (["image", "inspect", BASE], []),
        (["image", "inspect", BASE_OF_DEBIAN], own),
        (["pull", BASE], []),
    ):
        if subprocess.run(["docker", *command], capture_output=True).returncode == 0:
            return options
    if shutil.which("mmdebstrap") is None:
        raise NoEngineError(f"image {BASE} cannot be pulled, and there is no mmdebstrap to make another; install it")
    archive = directory / "base.tar"
    packages = "ca-certificates,gcc,libc6-dev,python3,python3-dev,python3-venv"
    # It trusts whom this machine trusts: packages may come through a proxy with a certificate authority of its own.
    trust = f"--customize-hook=upload {CERTIFICATES} {CERTIFICATES}"
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={packages}", trust, "bookworm", str(archive)], check=True
    )
    subprocess.run(["docker", "import", str(archive), BASE_OF_DEBIAN], check=True, capture_output=True, text=True)
    archive.unlink()
    return own


def answers() -> bool:
    """Whether a Docker engine answers."""
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def size(image: str) -> int:
    """Return the bytes of an image on disk."""
    command = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
