"""A copy of the whole code base with small stages in place of the real ones.

The copy comes first on `PYTHONPATH`, so that every process of a run uses it. Tests exercise the real planner, runner, store and command
line, and may edit any line of any file.
"""

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from forked_commands import Commands

from ngrpo.stages.declarations import STAGES as DECLARED

ROOT = Path(__file__).parents[2]
STAGES = tuple(DECLARED)
CACHEABLE = tuple(name for name, stage in DECLARED.items() if stage.cacheable)
COMMANDS = Commands()
atexit.register(COMMANDS.close)

STAGE = """
import json
import os

from ngrpo import small_shared


def run(config, inputs, output, context):
    work = context.work
    with open(os.environ["RAN"], "a") as log:
        log.write("{name}\\n")
    for name, directory in inputs.items():
        assert (directory / "payload.txt").read_text() == small_shared.PRODUCERS[name]
    (output / "payload.txt").write_text("{name}")
    (output / "metrics.json").write_text(json.dumps({{"value": 1.5}}))
    {body}
"""

EVALUATION = {
    "mean": 0.5,
    "mean_ci": [0.25, 0.75],
    "pass_at_k": {"1": 0.5, "2": 0.75},
    "pass_at_k_ci": {"1": [0.25, 0.75], "2": [0.5, 1.0]},
    "best_at_k": {"1": 0.5, "2": 0.625},
    "best_at_k_ci": {"1": [0.25, 0.75], "2": [0.25, 0.9]},
    "n_problems": 4,
    "n_samples": 2,
    "mean_tokens": 3.0,
    "truncated_rate": 0.0,
    "ungraded_rate": 0.0,
    "grader_errors": 0,
    "distinct_answers": 0.25,
    "per_problem": {"p0": 0, "p1": 1, "p2": 1, "p3": 2},
    "per_problem_maj": {"p0": 0.0, "p1": 0.0, "p2": 0.0, "p3": 1.0},
}
BODIES = {
    "benchmark_evaluation": "(output / 'evaluation.json').write_text(json.dumps(small_shared.EVALUATION))",
    "model_promotion": "(output / 'promotion.json').write_text(json.dumps(small_shared.PROMOTION))",
}
SHARED = f"""
PRODUCERS = {{
    "dataset": "prepare_data",
    "neighbor_index": "neighbor_index",
    "warm_start": "sft_warm_start",
    "trained": "ngrpo_training",
    "evaluation": "benchmark_evaluation",
}}
EVALUATION = {{"layout": 1, "models": {{"warm_start": {{"arithmetic": {EVALUATION}}}, "trained": {{"arithmetic": {EVALUATION}}}}}}}
PROMOTION = {{"layout": 1, "decision": "promoted", "reason": "first", "model": "ngrpo", "version": 1, "alias": "champion",
             "champion_version": None, "comparison": None}}
"""
REPORT = """
def write_report(path, *, summary, config, artifacts, last_run=None):
    stages = {name: name.partition(".")[0] for name in artifacts}
    assert all((directory / "payload.txt").read_text() == stages[name] for name, directory in artifacts.items())
    path.write_text(f"<html>{summary.get('evaluation')}")
"""


@dataclass
class House:
    """The copy, and a workspace."""

    root: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not re.match("AWS_|MLFLOW_|NGRPO_", name)}
        return kept | {
            "PYTHONPATH": str(self.root),
            "NGRPO_HOME": str(self.home),
            "RAN": str(self.root / "ran.txt"),
            "OMP_NUM_THREADS": "1",
        }

    def write_stage(self, name: str, body: str = "") -> None:
        """Replace a stage by a small one, with some lines from the test."""
        lines = f"{body}\n{BODIES.get(name, 'pass')}".replace("\n", "\n    ")
        (self.root / "ngrpo" / "stages" / f"{name}.py").write_text(STAGE.format(name=name, body=lines))

    def command(self, *arguments: str) -> list[str]:
        preset = [] if arguments[0] in ("report", "ui", "experiment") else ["--preset", str(self.root / "small.toml")]
        return [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", *arguments, *preset]

    def ngrpo(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        _, _, _, *given = self.command(*arguments)
        done = COMMANDS.run(given, self.environment | environment, self.root)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and return its process."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
            # As from a terminal: a shell's job in the background is started deaf to it, and so would all below be.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ran(self) -> list[str]:
        """Return the stages that did work since the last call, in order."""
        log = self.root / "ran.txt"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def copy(self, folder: Path) -> "House":
        """Copy everything to another folder. Stored results are found from there too, because no key depends on a path."""
        shutil.copytree(self.root, folder / "house")
        shutil.copytree(self.home, folder / "outputs", symlinks=True)
        return House(folder / "house", folder / "outputs")

    @property
    def summary(self) -> dict:
        return json.loads((self.home / "latest" / "summary.json").read_text())

    @property
    def last_run(self) -> Path:
        return max((self.home / "runs").iterdir())


def build(folder: Path) -> House:
    """Build a copy in a folder, with an empty workspace."""
    root = folder / "house"
    # With what is compiled: a file keeps its time, and so counts as unchanged.
    shutil.copytree(ROOT / "components" / "ngrpo", root / "ngrpo")
    shutil.copytree(ROOT / "pipelines", root / "ngrpo_kfp" / "pipelines")
    for stage in STAGES:
        shutil.copytree(ROOT / "components" / stage, root / "ngrpo_kfp" / "components" / stage)
    shutil.copy(Path(__file__).with_name("small.toml"), root)
    (root / "ngrpo" / "small_shared.py").write_text(SHARED)
    (root / "ngrpo" / "report" / "page.py").write_text(REPORT)
    small = House(root, folder / "outputs")
    for stage in STAGES:
        small.write_stage(stage)
    return small
