"""The training stage as a process: killed without warning, it goes on from its last checkpoint to the same bytes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from ngrpo.config import NGRPOTrainingConfig, validate
from ngrpo.errors import DataError
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.stages.ngrpo_training import run
from tiny import eligible, save_tiny_model

pytestmark = pytest.mark.pipeline

CONFIG = {
    "seed": 3,
    "model": {"source": {"kind": "initialized"}},
    "neighbors": {"candidates": 6, "block_rows": 64},
    "mixing": {"rate": 0.3, "k": 3, "end_marker": "stop"},
    "rollout": {"group_size": 4, "max_tokens": 24},
    "training": {
        "steps": 12,
        "prompts_per_batch": 8,
        "updates_per_batch": 2,
        "micro_batch_size": 8,
        "learning_rate": 1e-3,
        "index_refresh": "every_batch",
        "save_steps": 4,
    },
}
STAGE = """
import json, sys, time
from pathlib import Path
from ngrpo.config import NGRPOTrainingConfig
from ngrpo.stages import ngrpo_training
from ngrpo.training import policy_optimization
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
class LengthReward:  # a random model answers nothing correctly: a reward that gives it something to learn
    __name__ = "correctness"
    def __init__(self, grader): pass
    def __call__(self, completions, **_): return [len(one[0]["content"]) % 7 / 7 for one in completions]
policy_optimization.CorrectnessReward = LengthReward
root, slow = Path(sys.argv[1]), float(sys.argv[2])
step = NGRPOTrainer.training_step
def delayed(*arguments, **keywords):
    time.sleep(slow)  # leaves time to be killed between two steps
    return step(*arguments, **keywords)
NGRPOTrainer.training_step = delayed
config = NGRPOTrainingConfig.model_validate_json((root / "config.json").read_text())
inputs = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
(root / "output").mkdir(exist_ok=True)
ngrpo_training.run(config, inputs, root / "output", root / "work")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Inputs of the stage: more steps than one epoch has, so that a resume in the second epoch is covered."""
    root = tmp_path_factory.mktemp("stage")
    save_tiny_model(root / "warm_start" / "model")
    (root / "dataset").mkdir()
    rows = [
        {"id": f"{i}+{j}", "prompt": [{"role": "user", "content": f"{i} + {j} ="}], "answer": str(i + j)}
        for i in range(6)
        for j in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "dataset" / "train.parquet")
    embedding = load_file(root / "warm_start" / "model" / "model.safetensors")["model.embed_tokens.weight"]
    # The index of another matrix, as that of the base model is once the warm start has moved the embeddings.
    index = NeighborIndex.build(embedding + 0.01, eligible(), candidates=6, block_rows=64)
    index.save(root / "neighbor_index")
    return root


def directory(inputs: Path, tmp_path: Path, **training) -> Path:
    tmp_path.mkdir(exist_ok=True)
    for name in ("dataset", "neighbor_index", "warm_start"):
        (tmp_path / name).symlink_to(inputs / name)
    config = {**CONFIG, "training": CONFIG["training"] | training}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def start(root: Path, slow: float = 0.0, **variables: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_RUN_ID", None)
    environment |= variables
    return subprocess.Popen([sys.executable, "-c", STAGE, str(root), str(slow)], env=environment)


def weights(root: Path) -> str:
    return hashlib.sha256((root / "output" / "model" / "model.safetensors").read_bytes()).hexdigest()


def start_weights(root: Path) -> str:
    return hashlib.sha256((root / "warm_start" / "model" / "model.safetensors").read_bytes()).hexdigest()


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the stage did not get there"
        time.sleep(0.02)


def test_a_killed_stage_resumes_to_the_same_bytes(inputs, tmp_path):
    whole = directory(inputs, tmp_path / "whole")
    assert start(whole).wait() == 0

    killed = directory(inputs, tmp_path / "killed")
    for checkpoint in (4, 8):
        process = start(killed, slow=0.15)
        wait_for((killed / "work" / "checkpoints" / f"checkpoint-{checkpoint}" / "complete").exists)
        time.sleep(0.4)  # into the steps after the checkpoint, whose work is lost
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("resumed")).info.run_id
    tracking = {"MLFLOW_TRACKING_URI": client.tracking_uri, "MLFLOW_RUN_ID": run_id}
    assert start(killed, **tracking).wait() == 0

    assert weights(killed) == weights(whole) != start_weights(whole)
    history = [json.loads((root / "output" / "log_history.json").read_text()) for root in (whole, killed)]
    assert [entry["step"] for entry in history[1]] == list(range(1, 13))
    for name in ("loss", "reward", "kl", "mixing/gate_rate", "diversity/distinct_answers"):
        assert [entry.get(name) for entry in history[0]] == [entry.get(name) for entry in history[1]]
    curve = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(entry["step"], entry["loss"]) for entry in history[0]]
    samples = [(root / "output" / "rollout_samples.json").read_text() for root in (whole, killed)]
    assert samples[0] == samples[1]


def test_a_checkpoint_that_was_not_finished_is_not_resumed_from_and_what_is_written(inputs, tmp_path):
    root = directory(inputs, tmp_path / "run", steps=4)
    unfinished = root / "work" / "checkpoints" / "checkpoint-2"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half of a fi")
    assert start(root).wait() == 0
    history = json.loads((root / "output" / "log_history.json").read_text())
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    output = root / "output"
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0.1 < metrics["last/mixing/gate_rate"] < 0.5
    assert 0.5 < metrics["last/mixing/anchor_cosine"] < 1.0
    histogram = json.loads((output / "anchor_cosine_histogram.json").read_text())
    assert len(histogram["counts"]) == len(histogram["edges"]) - 1
    samples = json.loads((output / "rollout_samples.json").read_text())
    mixed = sum(sum(sample["mixed"]) for sample in samples)
    assert mixed == sum(len(sample["neighbors"]) for sample in samples) > 0
    neighbors = json.loads((output / "example_neighbors.json").read_text())
    assert all(len(entry["neighbors"]) == 5 for entry in neighbors)
    assert not list((output / "model").glob("*.bin")), "a pickle, which would go on into the model registry"
    tensors = load_file(output / "model" / "model.safetensors")
    start_tensors = load_file(root / "warm_start" / "model" / "model.safetensors")
    assert any(not torch.equal(tensors[name], start_tensors[name]) for name in start_tensors)
    assert sum(histogram["counts"]) > mixed


def test_impossible_inputs_are_one_clear_error(inputs, tmp_path):
    root = directory(inputs, tmp_path / "run")
    config = validate(NGRPOTrainingConfig, CONFIG)
    named = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
    large = config.model_copy(update={"training": config.training.model_copy(update={"prompts_per_batch": 64})})
    with pytest.raises(DataError, match=r"data.train has 36 problems but training\.prompts_per_batch=64"):
        run(large, named, root / "output", root / "work")
    empty = tmp_path / "empty" / "model"
    empty.mkdir(parents=True)
    with pytest.raises(DataError, match=r"no \*\.safetensors"):
        run(config, named | {"warm_start": empty.parent}, root / "output", root / "work")
    save_tiny_model(tmp_path / "small" / "model")
    path = tmp_path / "small" / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:20].clone()}, path)
    settings = tmp_path / "small" / "model" / "config.json"
    settings.write_text(settings.read_text().replace('"vocab_size": 48', '"vocab_size": 20'))
    with pytest.raises(DataError, match="48 tokens but the model has 20 embedding rows"):
        run(config, named | {"warm_start": tmp_path / "small"}, root / "output", root / "work")
