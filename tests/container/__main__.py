"""The tiny pipeline in containers: the CPU image on a real Docker engine, run by kfp's own DockerRunner (`make test-container`).

It must give what the same pipeline gives in processes of this machine: the same keys, the same evaluation, the same decision. S3 is on
the loopback interface of the host, MLflow a database file that both sides open. Needs root only where it has to start an engine by itself.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images.build import build
from kfp import local
from rich.console import Console
from rich.table import Table

from ngrpo.config import load_config
from ngrpo.environment import environment
from ngrpo.errors import NGRPOError
from ngrpo.stages.registry import STAGES
from ngrpo.storage.seaweed import serve
from ngrpo_kfp.pipelines.options import PRESETS
from ngrpo_kfp.pipelines.run import run
from ngrpo_kfp.pipelines.runtime.local import in_processes
from ngrpo_kfp.pipelines.runtime.workspace import Workspace

IMAGE = "ngrpo/python:0.1.0"
"""What the components ask for."""
BASE = "python:3.11-slim-bookworm"
BASE_OF_DEBIAN = "ngrpo/debian-python:bookworm"
PASSED_ON = ("AWS_", "MLFLOW_", "NGRPO_", "NO_PROXY", "no_proxy", "OMP_", "TMPDIR", "TQDM_")
SECONDS_TO_START = 60


class NoEngineError(NGRPOError):
    """There is no Docker engine, and none can be started."""


def main() -> int:
    """Build the image, with the options of `docker build` that are given, run the pipeline both ways, and compare."""
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="ngrpo-container-") as directory, engine(Path(directory)):
            began = time.monotonic()
            build("cpu", IMAGE, ["--network", "host", *base_image(Path(directory)), *sys.argv[1:]])
            seconds = {"image": time.monotonic() - began}
            size = int(output("docker", "image", "inspect", "--format", "{{.Size}}", IMAGE))
            found = {}
            # One S3 service for both: boto3 keeps the first credentials that it sees.
            with serve(Path(directory) / "s3" / "data") as endpoint, environment(endpoint.environment()):
                for where, runner in (("processes", in_processes), ("containers", in_containers)):
                    began = time.monotonic()
                    home = Workspace(Path(directory) / where)
                    with environment({"NGRPO_STORE": f"s3://ngrpo/{where}", "MLFLOW_TRACKING_URI": None}):
                        ran = run(load_config(PRESETS / "tiny.toml"), home, console, runner=runner)
                    seconds[where] = time.monotonic() - began
                    found[where] = json.loads((ran / "summary.json").read_text())
            console.print(f"image {IMAGE}: {size / 1e9:.2f} GB, built in {seconds['image']:.0f} s")
            return compare(found["processes"], found["containers"], seconds, console)
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


def compare(processes: dict, containers: dict, seconds: dict[str, float], console: Console) -> int:
    """Show both results side by side; the exit code says whether they are the same."""
    table = Table("", "processes", "containers")
    wrong = 0
    rows = {
        name: lambda summary, name=name: summary["stages"][name]["key"][:12]
        for name in processes["stages"]
        if STAGES[name].cacheable  # the key of a decision is that of its run
    }
    for model, evaluation in processes["evaluation"].items():
        rows[f"{model}: mean"] = lambda summary, model=model: repr(summary["evaluation"][model]["mean"])
        for k in evaluation["pass_at_k"]:
            rows[f"{model}: pass@{k}"] = lambda summary, model=model, k=k: repr(
                summary["evaluation"][model]["pass_at_k"][k]
            )
    rows["decision"] = lambda summary: summary["promotion"]["decision"]
    for name, value in rows.items():
        first, second = value(processes), value(containers)
        wrong += first != second
        table.add_row(name, first, second, style="" if first == second else "bold red")
    table.add_row("seconds", *(f"{seconds[where]:.0f}" for where in ("processes", "containers")))
    console.print(table)
    console.print("the same" if not wrong else f"[bold red]{wrong} differ[/]")
    return int(wrong > 0)


def in_containers() -> local.DockerRunner:
    """Return kfp's runner: containers on the host's network, with the directories and the settings of this run."""
    directories = {os.environ[name] for name in ("NGRPO_RUN_DIR", "NGRPO_WORK_DIR", "NGRPO_CACHE_DIR", "TMPDIR")}
    tracking = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
    for name in directories:
        Path(name).mkdir(parents=True, exist_ok=True)
    return local.DockerRunner(
        environment={name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)},
        network_mode="host",
        pid_mode="host",  # the run ends the processes of its stages by their number
        user=f"{os.getuid()}:{os.getgid()}",
        mounts=[
            {"Type": "bind", "Source": name, "Target": name}
            for name in sorted({*directories, str(Path(tracking).parent)})
        ],
    )


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
    subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(archive)], check=True)
    subprocess.run(["docker", "import", str(archive), BASE_OF_DEBIAN], check=True, capture_output=True, text=True)
    archive.unlink()
    return own


def answers() -> bool:
    """Whether a Docker engine answers."""
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
