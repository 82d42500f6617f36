"""The notebook of the documentation runs from its first cell to its last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tour.ipynb"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "tour.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"MPLBACKEND": "agg"}
    ran = subprocess.run([sys.executable, "tour.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    print(ran.stdout)
    assert "' cat'" in ran.stdout
    assert ran.stdout.count("---") == 3
    assert "[" in ran.stdout.rpartition("mixture")[2], "no step of three rollouts was mixed"
