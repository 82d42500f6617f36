"""A transcript: an own model, data, benchmark, rewards and chat template, from the files to a trained model in three commands.

The commands are those of `docs/own-job.md`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from own_job import TEMPLATE, problems, write_csv, write_job

ROOT = Path(__file__).parents[2]
STAGES = [
    "prepare_data",
    "neighbor_index",
    "sft_warm_start",
    "ngrpo_training",
    "benchmark_evaluation",
    "model_promotion",
]
SMALL = ["training.steps=1", "training.prompts_per_batch=2", "training.save_steps=1", "rollout.max_tokens=8"]
SMALL += ["evaluation.max_tokens=8", "evaluation.samples=1", "evaluation.pass_at=[1]", "mixing.end_marker=null"]

pytestmark = [pytest.mark.pipeline, pytest.mark.long, pytest.mark.timeout(1800)]


class Shell:
    """A person at a terminal, in the folder of the job."""

    def __init__(self, folder: Path):
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not re.match("AWS_|MLFLOW_|NGRPO_", name)}
        home = {"NGRPO_HOME": str(folder / "outputs"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        self.environment = kept | home

    def __call__(self, line: str) -> str:
        """Run a command as it is typed; it must succeed."""
        words = shlex.split(line)
        assert words[0] == "ngrpo"
        done = subprocess.run(
            [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", *words[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=560,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def last_run(self) -> dict[str, dict]:
        """Return what the last run says of its stages."""
        return json.loads((self.folder / "outputs" / "latest" / "summary.json").read_text())["stages"]

    def to_run(self) -> list[str]:
        """Return the stages that `plan` would run."""
        table = self(f"ngrpo plan mine.toml {settings()}")
        rows = [[cell.strip() for cell in line.split("│")] for line in table.splitlines() if "│" in line]
        return [name for name in STAGES if any(row[1] == name and row[3] == "to run" for row in rows)]


def settings() -> str:
    return " ".join(f"--set {shlex.quote(each)}" for each in SMALL)


def documented() -> list[str]:
    """Return the commands of the tutorial, long lines joined."""
    text = (ROOT / "docs" / "own-job.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("ngrpo ")]


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_from_own_files_to_a_trained_model_and_again_after_edits(tmp_path):
    shell = Shell(write_job(tmp_path / "job"))
    init, check, run, *_ = documented()
    assert "problems in 'question', answers in 'answer'" in shell(init)
    assert "passed" in shell(check)
    shell(f"{run} {settings()}")
    assert (shell.folder / "outputs" / "latest" / "report.html").is_file()
    assert shell.to_run() == ["model_promotion"], "nothing has changed; promotion is never cached"

    # A benchmark is measured again only if the tables that `prepare_data` writes are others.
    rows = problems(60)[:48]
    write_csv(shell.folder / "mine.csv", [(rows[0][0], "#### 1"), *rows[1:]])
    assert shell.to_run() == [
        "prepare_data",
        "sft_warm_start",
        "ngrpo_training",
        "benchmark_evaluation",
        "model_promotion",
    ]
    write_csv(shell.folder / "mine.csv", rows)
    assert shell.to_run() == ["model_promotion"], "the content counts, not the time of the file"

    edited(shell.folder / "chat.jinja", "<|assistant|>", "<|assistant|> ")
    every = [name for name in STAGES if name != "neighbor_index"]
    assert shell.to_run() == every, "the index is made of weights and vocabulary"
    (shell.folder / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")

    # The cheapest of the edits is run, so that what was planned is seen to happen.
    before = shell.last_run()
    edited(shell.folder / "rewards.py", "1.0 / (1 +", "2.0 / (1 +")
    planned = shell.to_run()
    assert planned == ["ngrpo_training", "benchmark_evaluation", "model_promotion"]
    shell(f"{run} {settings()}")
    after = shell.last_run()
    assert [name for name in STAGES if not after[name]["cached"]] == planned
    taken = [name for name in STAGES if name not in planned]
    assert {name: after[name]["artifact"] for name in taken} == {name: before[name]["artifact"] for name in taken}
    assert after["ngrpo_training"]["artifact"] != before["ngrpo_training"]["artifact"]
    assert shell.to_run() == ["model_promotion"]
