"""A stage over local directories: `python -m ngrpo.stages.<stage>`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ngrpo.stages.standalone import main

PRESET = str(Path(__file__).with_name("small.toml"))


def test_a_stage_runs_without_any_service(tmp_path):
    output = tmp_path / "dataset"
    command = [sys.executable, "-m", "ngrpo.stages.prepare_data", "--preset", PRESET, "--output", output]
    subprocess.run(
        [*command, "--set", "data.train.size=5"], check=True, timeout=120, env={"PATH": "", "HOME": str(tmp_path)}
    )
    assert (output / "train.parquet").exists()
    assert 5 in json.loads((output / "metrics.json").read_text()).values()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--input", "dataset"], "--input dataset: expected NAME=DIR"),
        (["--input", "dataset=/no/such"], "--input dataset=/no/such: expected NAME=DIR"),
        ([], "--input trained=DIR is missing"),
        (["--set", "promotion.speed=1"], "promotion.speed: unknown setting"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, arguments, named):
    with pytest.raises(SystemExit) as failure:
        main("model_promotion", ["--preset", PRESET, "--output", str(tmp_path / "out"), *arguments])
    assert named in str(failure.value)


def test_an_output_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="not empty"):
        main("model_promotion", ["--preset", PRESET, "--output", str(tmp_path)])
