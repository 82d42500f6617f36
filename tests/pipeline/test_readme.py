"""The commands that the README shows under "Try it" do what it says, in its order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import documented_commands

ROOT = Path(__file__).parents[2]
NGRPO = Path(sys.executable).parent / "ngrpo"
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
TOO_LONG = {("ngrpo", "run", "--preset", "smollm2")}
"""A quarter of an hour."""


def run(words, home):
    """Run a command line of ngrpo in a workspace; return what it printed."""
    environment = {**os.environ, "NGRPO_HOME": str(home), "COLUMNS": "80"}
    done = subprocess.run([NGRPO, *words[1:]], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def test_the_commands_of_the_readme(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    trial = text[text.index("## Try it") : text.index("## Bring your own job")]
    lines = [line.words for line in documented_commands.lines() if line.page.name == "README.md"]
    lines = [words for words in lines if " ".join(words[:3]) in trial and words[0] == "ngrpo" and words not in TOO_LONG]
    assert len(lines) >= 5
    run(("ngrpo", "run"), tmp_path)  # `make run`, after its installation
    for words in lines:
        names = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir())
        chosen = iter((names[-1], names[0]))
        run([next(chosen) if word == "RUN" else word for word in words], tmp_path)
    assert (tmp_path / "latest" / "report.html").stat().st_size > 10_000
    # Run it again, and every stage comes from the cache.
    printed = run(("ngrpo", "run"), tmp_path)
    assert len(re.findall("cached", printed)) >= 5
