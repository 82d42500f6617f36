"""A small training stage on a random model, as a process that can be killed: inputs, settings, and the script that runs it."""

import hashlib
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from forks import Script
from ngrpo.neighbors.index import NeighborIndex
from tiny import eligible, save_tiny_model

INPUTS = ("dataset", "neighbor_index", "warm_start")
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

PREPARE = """
import os, sys, time
from pathlib import Path
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
    print(f"at {arguments[0].state.global_step}", flush=True)
    time.sleep(slow)  # leaves time to be killed between two steps
    return step(*arguments, **keywords)
NGRPOTrainer.training_step = delayed
"""

SELECTION = {"benchmark": "validation", "samples": 2}
SCORED = """
import json
from ngrpo.training.validation import Validation
scores = {int(step): score for step, score in json.loads((root / "scores.json").read_text()).items()}
measured, evaluate, verdicts = [], NGRPOTrainer.evaluate, Validation.verdicts
def remembered(self, *arguments, **keywords):
    measured.append(self.state.global_step)
    return evaluate(self, *arguments, **keywords)
def decreed(self, engine, **share):
    assert len(verdicts(self, engine, **share)) == 6
    return [number < scores[measured[-1]] for number in range(4)]  # a random model answers nothing correctly
NGRPOTrainer.evaluate, Validation.verdicts = remembered, decreed
start_engine = policy_optimization.start_engine
def with_room(*arguments, chats, **keywords):
    assert any(chat[0]["content"].endswith("+ 1 + 1 =") for chat in chats), "vLLM makes room for these prompts only"
    return start_engine(*arguments, chats=chats, **keywords)
policy_optimization.start_engine = with_room
"""
"""Begins a script of a stage with a selection: of four answers so many are correct as `scores.json` says for the step."""


def write_inputs(root: Path, hidden_size: int = 64) -> None:
    """Write the artifacts that the stage reads; there are more steps than one epoch has, so that a resume in the second is covered."""
    save_tiny_model(root / "warm_start" / "model", hidden_size=hidden_size)
    (root / "dataset").mkdir()
    rows = [
        {"id": f"{i}+{j}", "prompt": [{"role": "user", "content": f"{i} + {j} ="}], "answer": str(i + j)}
        for i in range(6)
        for j in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "dataset" / "train.parquet")
    (root / "dataset" / "benchmarks").mkdir()
    longer = [row | {"prompt": [{"role": "user", "content": f"{row['answer']} + 1 + 1 ="}]} for row in rows[:3]]
    pq.write_table(pa.Table.from_pylist(longer), root / "dataset" / "benchmarks" / "validation.parquet")
    embedding = load_file(root / "warm_start" / "model" / "model.safetensors")["model.embed_tokens.weight"]
    # The index of another matrix, as that of the base model is once the warm start has moved the embeddings.
    index = NeighborIndex.build(embedding + 0.01, eligible(), candidates=6, block_rows=64)
    index.save(root / "neighbor_index")


def start(script: str, root: Path, slow: float = 0.0, errors: Path | None = None, **variables: str) -> Script:
    """Start a script on a directory; its errors go to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_RUN_ID", None)
    errors = errors or root / "errors.log"
    return Script(PREPARE + script, [str(root), str(slow)], environment | variables, str(errors))


def weights(artifact: Path) -> str:
    """Return the digest of the weights of an artifact."""
    return hashlib.sha256((artifact / "model" / "model.safetensors").read_bytes()).hexdigest()


def wait_for(condition, seconds: float = 120.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the stage did not get there"
        time.sleep(0.02)
