"""The training stage as a process: killed without warning, it goes on from its last checkpoint to the same bytes."""

import hashlib
import json
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from small_training import CONFIG, INPUTS, SCORED, SELECTION, start, wait_for, weights, write_inputs

from ngrpo.config import NGRPOTrainingConfig, validate
from ngrpo.data.problem import SET, WEIGHT
from ngrpo.errors import DataError
from ngrpo.stages.context import Context
from ngrpo.stages.ngrpo_training import run
from own_strategy import documented_code, own_mixing
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline

STAGE = """
from ngrpo.config import NGRPOTrainingConfig
from ngrpo.stages import ngrpo_training
from ngrpo.stages.context import Context
config = NGRPOTrainingConfig.model_validate_json((root / "config.json").read_text())
inputs = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
(root / "output").mkdir(exist_ok=True)
context = Context(root / "work", reporters=("mlflow",) if "MLFLOW_RUN_ID" in os.environ else ())
ngrpo_training.run(config, inputs, root / "output", context)
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("stage")
    write_inputs(root)
    return root


def directory(inputs: Path, tmp_path: Path, **training) -> Path:
    tmp_path.mkdir(exist_ok=True)
    for name in INPUTS:
        (tmp_path / name).symlink_to(inputs / name)
    config = {**CONFIG, "training": CONFIG["training"] | training}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


# Whose batches and whose state of the objective a checkpoint must remember.
STATEFUL = {"num_iterations": 2, "warmup_ratio": 0.5, "trl": {"use_adaptive_entropy": True, "entropy_target": 3.0}}


def in_sets(root: Path) -> Path:
    """Divide the training problems into two sets; the small one comes round several times."""
    rows = pq.read_table(root / "dataset" / "train.parquet").to_pylist()
    sets = [{SET: "small", WEIGHT: 3.0} if number < 6 else {SET: "large", WEIGHT: 1.0} for number in range(len(rows))]
    (root / "dataset").unlink()
    (root / "dataset").mkdir()
    table = pa.Table.from_pylist([row | of for row, of in zip(rows, sets, strict=True)])
    pq.write_table(table, root / "dataset" / "train.parquet")
    return root


def test_a_killed_stage_resumes_to_the_same_bytes_also_in_the_middle_of_several_training_sets(inputs, tmp_path):
    whole = in_sets(directory(inputs, tmp_path / "whole", **STATEFUL))
    assert start(STAGE, whole).wait() == 0

    killed = in_sets(directory(inputs, tmp_path / "killed", **STATEFUL))
    for checkpoint in (4, 8):
        process = start(STAGE, killed, slow=0.15)
        wait_for((killed / "work" / "checkpoints" / f"checkpoint-{checkpoint}" / "complete").exists)
        time.sleep(0.4)  # into the steps after the checkpoint, whose work is lost
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = client.create_run(client.create_experiment("resumed")).info.run_id
    tracking = {"MLFLOW_TRACKING_URI": client.tracking_uri, "MLFLOW_RUN_ID": run_id}
    assert start(STAGE, killed, **tracking).wait() == 0

    assert weights(killed / "output") == weights(whole / "output") != weights(whole / "warm_start")
    history = [json.loads((root / "output" / "log_history.json").read_text()) for root in (whole, killed)]
    assert [entry["step"] for entry in history[1]] == list(range(1, 13))
    for name in ("loss", "reward", "kl", "entropy_coef", "mixing/gate_rate", "diversity/distinct_answers"):
        assert [entry.get(name) for entry in history[0]] == [entry.get(name) for entry in history[1]]
    assert len({entry["entropy_coef"] for entry in history[0]}) > 1
    shares = [[entry["sets/small/share"] for entry in entries if "sets/small/share" in entry] for entries in history]
    assert shares[0] == shares[1] == [0.75] * 3
    for name in ("sets/small/reward", "sets/large/reward"):
        assert len({entry[name] for entry in history[0] if name in entry}) == 3
        assert [entry.get(name) for entry in history[0]] == [entry.get(name) for entry in history[1]]
    curve = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(entry["step"], entry["loss"]) for entry in history[0]]
    samples = [(root / "output" / "rollout_samples.json").read_text() for root in (whole, killed)]
    assert samples[0] == samples[1]


def test_the_best_checkpoint_by_validation_is_the_result_and_the_users_code_stays_beside_it(inputs, tmp_path):
    root = directory(inputs, tmp_path / "run", selection=SELECTION, steps=10)
    mixing = json.loads(own_mixing(tmp_path, end_marker="stop").model_dump_json())
    graders = {name: f"def grade(response, answer): return '{name}' in response\n" for name in ("train", "selection")}
    gradings = {
        f"{name}_grading": {"compare": {"function": "graders.py:grade", "code": {"graders.py": code}}}
        for name, code in graders.items()
    }
    changed = json.loads((root / "config.json").read_text()) | {"mixing": mixing} | gradings
    (root / "config.json").write_text(json.dumps(changed))
    (root / "scores.json").write_text(json.dumps({4: 1, 8: 3, 10: 2}))
    assert start(SCORED + STAGE, root).wait() == 0, (root / "errors.log").read_text()[-2000:]
    history = json.loads((root / "output" / "log_history.json").read_text())
    validation = {entry["step"]: entry["eval_mean"] for entry in history if "eval_mean" in entry}
    assert validation == {4: 0.25, 8: 0.75, 10: 0.5}, "the end is measured wherever it falls"
    of_step = {
        step: hashlib.sha256((root / f"work/checkpoints/checkpoint-{step}/model.safetensors").read_bytes()).hexdigest()
        for step in (8, 10)
    }
    assert weights(root / "output") == of_step[8] != of_step[10]
    metrics = json.loads((root / "output" / "metrics.json").read_text())
    assert metrics["selected_step"] == 8
    assert metrics["last/mixing/gate_rate"] > 0.2
    code = root / "output" / "code"
    assert (code / "mixing.strategy" / "mine.py").read_text() == documented_code()
    assert (code / "data.train.grading" / "graders.py").read_text() == graders["train"]
    assert (code / "training.selection.grading" / "graders.py").read_text() == graders["selection"]


def test_the_policy_may_be_measured_more_often_than_it_is_saved(inputs, tmp_path):
    root = directory(inputs, tmp_path / "run", selection=SELECTION | {"steps": 2}, steps=10, save_steps=8)
    (root / "scores.json").write_text(json.dumps({2: 1, 4: 3, 6: 2, 8: 3, 10: 0}))
    assert start(SCORED + STAGE, root).wait() == 0, (root / "errors.log").read_text()[-2000:]
    history = json.loads((root / "output" / "log_history.json").read_text())
    measured = {entry["step"]: entry["eval_mean"] for entry in history if "eval_mean" in entry}
    assert measured == {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.75, 10: 0.0}
    kept = root / "work" / "checkpoints"
    assert {path.name for path in kept.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8", "checkpoint-10"}
    best = hashlib.sha256((kept / "checkpoint-4" / "model.safetensors").read_bytes()).hexdigest()
    assert weights(root / "output") == best, "saved where it was the best so far, not at 8, which is only as good"
    assert json.loads((root / "output" / "metrics.json").read_text())["selected_step"] == 4


def test_a_checkpoint_that_was_not_finished_is_not_resumed_from_and_what_is_written(inputs, tmp_path):
    root = directory(inputs, tmp_path / "run", steps=4)
    unfinished = root / "work" / "checkpoints" / "checkpoint-2"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half of a fi")
    assert start(STAGE, root).wait() == 0
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
    named = {name: root / name for name in INPUTS}
    large = config.model_copy(update={"training": config.training.model_copy(update={"prompts_per_batch": 64})})
    with pytest.raises(DataError, match=r"data.train has 36 problems but training\.prompts_per_batch=64"):
        run(large, named, root / "output", Context(root / "work"))
    empty = tmp_path / "empty" / "model"
    empty.mkdir(parents=True)
    with pytest.raises(DataError, match=r"no weights: model.safetensors missing"):
        run(config, named | {"warm_start": empty.parent}, root / "output", Context(root / "work"))
    save_tiny_model(tmp_path / "small" / "model")
    path = tmp_path / "small" / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:20].clone()}, path)
    settings = tmp_path / "small" / "model" / "config.json"
    settings.write_text(settings.read_text().replace('"vocab_size": 48', '"vocab_size": 20'))
    with pytest.raises(DataError, match="48 tokens but its embedding matrix has 20 rows"):
        run(config, named | {"warm_start": tmp_path / "small"}, root / "output", Context(root / "work"))
