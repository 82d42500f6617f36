"""Two processes train as one does: the same rollouts, losses and weights, up to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import CONFIG, write_inputs

pytestmark = pytest.mark.pipeline

TESTS = Path(__file__).parents[1]
PROCESS = Path(__file__).with_name("parallel_process.py")
STEPS = 4
# Sums in another order: relative to the value, after four optimizer steps.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    training = {"steps": STEPS, "updates_per_batch": 1, "micro_batch_size": 4, "save_steps": STEPS}
    (root / "config.json").write_text(json.dumps({**CONFIG, "training": CONFIG["training"] | training}))
    return root


def train(root: Path, output: Path, processes: int, way: str = "copied", engine: str = "transformers") -> Path:
    (output / "work").mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment.pop("MLFLOW_RUN_ID", None)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, str(PROCESS), str(root), str(output), engine, way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return output


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> Path:
    return train(root, tmp_path_factory.mktemp("alone"), processes=1)


def history(output: Path) -> list[dict]:
    return json.loads((output / "artifact" / "log_history.json").read_text())


@pytest.mark.parametrize("way", ["copied", "sharded"])
def test_two_processes_are_one(root, alone, tmp_path, way):
    together = train(root, tmp_path, processes=2, way=way)
    # Not the logged KL and entropy: TRL logs means of the means of micro-batches, and these hold other rows.
    for name in ("loss", "grad_norm", "reward", "completions/mean_length"):
        expected, found = ([entry[name] for entry in history(one)] for one in (alone, together))
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=1e-6), name
    assert min(entry["grad_norm"] for entry in history(alone)) > 1e-2
    expected = load_file(alone / "weights-0.safetensors")
    for rank in (0, 1):
        seen = json.loads((together / f"seen-{rank}.json").read_text())
        assert len(seen["errors"]) == STEPS
        assert max(seen["errors"]) <= 1e-4, "the replay law, on the rollouts of this process"
        assert set(seen["sharded"]) == {way == "sharded"}
        for name, tensor in load_file(together / f"weights-{rank}.safetensors").items():
            torch.testing.assert_close(tensor, expected[name], rtol=TOLERANCE, atol=1e-5)
    saved = load_file(together / "artifact" / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], load_file(together / "weights-0.safetensors")[name]) for name in saved)
