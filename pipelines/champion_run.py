"""The run of a schedule that starts from the champion: planned in the cluster on the day, for only then its keys are known."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from ngrpo.config import RunConfig, validate
from ngrpo.environment import addresses_without_users
from ngrpo.errors import Preempted
from ngrpo_kfp.pipelines.base_model import from_champion
from ngrpo_kfp.pipelines.runtime.images import Images
from ngrpo_kfp.pipelines.runtime.kubeflow import OVER, ClusterError, connect, explained
from ngrpo_kfp.pipelines.runtime.workspace import Workspace
from ngrpo_kfp.pipelines.submission import submit

_PAUSE_SECONDS = 30.0
_PATIENCE_SECONDS = 3600.0
"""How long the API may be out of reach: who stops waiting lets the schedule start a second run."""


@addresses_without_users()
def submit_and_wait(config_json: str, images: str, *, pause_seconds: float = _PAUSE_SECONDS) -> None:
    """Submit a run that starts from the champion, and wait for it: a schedule that runs one at a time then starts no second.

    Args:
        config_json: Configuration of the run, with the base model to replace.
        images: Text of `images.lock`.
        pause_seconds: Time between two looks at the run.

    Raises:
        NGRPOError: The run cannot be submitted, or did not succeed.
        Preempted: SIGTERM arrived; the run was ended.
    """
    console = Console(file=sys.stdout, highlight=False)
    told_to_stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_stop.set())
    config = from_champion(validate(RunConfig, json.loads(config_json)))
    with tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        lock = Path(scratch) / "images.lock"
        lock.write_text(images, encoding="utf-8")
        client = connect()
        run_id = submit(config, Images(lock), Workspace(Path(scratch)), console)
    state, heard = None, time.monotonic()
    while state not in OVER:
        if told_to_stop.wait(pause_seconds):
            with explained(f"run {run_id}, which goes on"):
                client.terminate_run(run_id)
            raise Preempted
        try:
            with explained(f"run {run_id}"):
                state = client.get_run(run_id).state
            heard = time.monotonic()
        except ClusterError as error:
            if time.monotonic() - heard > _PATIENCE_SECONDS:
                raise
            print(f"no news: {error}", file=sys.stderr, flush=True)
    console.print(f"run  {run_id}: {state}", soft_wrap=True)
    if state != "SUCCEEDED":
        raise ClusterError(f"run {run_id} ended as {state}: `ngrpo status {run_id}` shows why")
