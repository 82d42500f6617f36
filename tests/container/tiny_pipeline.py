"""The tiny pipeline in containers: the CPU image on a real Docker engine, run by kfp's own DockerRunner.

It must give what the same pipeline gives in processes of this machine: the same keys, the same evaluation, the same decision. S3 is on
the loopback interface of the host, MLflow a database file that both sides open.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from images.build import build
from kfp import local
from rich.console import Console
from rich.table import Table
from tests.container.engine import size

from ngrpo.config import load_config
from ngrpo.environment import environment
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.seaweed import serve
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local.run_pipeline import run
from ngrpo_kfp.pipelines.local.runner import in_processes
from ngrpo_kfp.pipelines.local.workspace import Workspace

IMAGE = "ngrpo/python:0.1.0"
"""What the components ask for."""
PASSED_ON = ("AWS_", "MLFLOW_", "NGRPO_", "NO_PROXY", "no_proxy", "OMP_", "TMPDIR", "TQDM_")


def check(options: list[str], console: Console) -> int:
    """Build the image, run the pipeline both ways, and compare.

    Args:
        options: Options of `docker build`.
        console: Where results go.

    Returns:
        The exit code: 0 if both runs gave the same.
    """
    began = time.monotonic()
    build("cpu", IMAGE, options)
    seconds = {"image": time.monotonic() - began}
    found = {}
    # One S3 service for both: boto3 keeps the first credentials that it sees.
    with (
        tempfile.TemporaryDirectory(prefix="ngrpo-container-") as directory,
        serve(Path(directory) / "s3" / "data") as endpoint,
        environment(endpoint.environment()),
    ):
        for where, runner in (("processes", in_processes), ("containers", in_containers)):
            began = time.monotonic()
            home = Workspace(Path(directory) / where)
            with environment({"NGRPO_STORE": f"s3://ngrpo/{where}", "MLFLOW_TRACKING_URI": None}):
                ran = run(load_config(PRESETS / "tiny.toml"), home, console, runner=runner)
            seconds[where] = time.monotonic() - began
            found[where] = json.loads((ran / "summary.json").read_text())
    console.print(f"image {IMAGE}: {size(IMAGE) / 1e9:.2f} GB, built in {seconds['image']:.0f} s")
    return compare(found["processes"], found["containers"], seconds, console)


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
