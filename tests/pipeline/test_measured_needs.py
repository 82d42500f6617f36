"""A run's measured needs are below the computed ones, and not far below: memory of every stage, and disk of unfinished work."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ngrpo.sizing.stages import needs_of
from ngrpo.stages.declarations import STAGES
from sizing_table import preset

pytestmark = [pytest.mark.pipeline, pytest.mark.long, pytest.mark.timeout(5400)]


def size(directory: Path) -> int:
    """Return the bytes of the files below a directory that is being written to."""
    total = 0
    for path, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # it was moved meanwhile
                continue
    return total


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_a_run_takes_at_most_what_is_computed_and_at_least_half(name, tmp_path):
    most, ended = [0], threading.Event()

    def watch():
        while not ended.is_set():
            most[0] = max(most[0], size(tmp_path / "work") + size(tmp_path / "cache"))
            time.sleep(0.5)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        command = [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", "run", name]
        environment = {**os.environ, "NGRPO_HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    finally:
        ended.set()
        watching.join()
    assert done.returncode == 0, done.stdout + done.stderr
    config = preset(name)
    (run,) = (tmp_path / "runs").iterdir()
    for stage in STAGES:
        needs = needs_of(config, stage)
        # A pod also holds the processes that grade, which are not counted in that of the stage.
        computed = sum(term.bytes for term in needs.memory.terms if term.name != "graders")
        measured = json.loads((run / "stages" / f"{stage}.json").read_text())["peak_memory_bytes"]
        assert measured <= computed <= 2 * measured, stage
    assert most[0] <= sum(needs_of(config, stage).scratch.bytes for stage in STAGES) + 64 * 2**20
