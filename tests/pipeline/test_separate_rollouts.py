"""Rollouts in separate processes, one batch behind training, compared with engines that have the weights of one batch ago."""

import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from forked_children import ForkedChild, fork_children
from observed_training import finish, start
from safetensors.torch import load_file
from small_training import CONFIG, write_inputs
from transformers import AutoModelForCausalLM, AutoTokenizer

from forks import Script
from ngrpo.config import NGRPOTrainingConfig
from ngrpo.errors import DataError, EngineError
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout import engine_from_files
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.seeds import request_seed
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training import policy_optimization
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_optimization import train_policy
from ngrpo.training.rollout_batch import RolloutBatch
from replay import replay_error
from rewards import LengthReward
from tiny import EOS, PAD, mixer_for

pytestmark = pytest.mark.pipeline

STEPS, BATCHES = 12, 6
"""More than one epoch, which has 4 batches."""


def configured(placement: str = "separate", **training: object) -> NGRPOTrainingConfig:
    changed = {
        "rollout": CONFIG["rollout"] | {"placement": placement},
        "training": CONFIG["training"] | {"steps": STEPS, "mismatch_correction": "token_truncate"} | training,
    }
    return NGRPOTrainingConfig.model_validate(CONFIG | changed)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A fork has none of the threads that its parent computed with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture
def children(monkeypatch) -> list[ForkedChild]:
    """Start the engines' processes as forks, and return them."""
    monkeypatch.setattr(policy_optimization, "CorrectnessReward", LengthReward)
    return fork_children(monkeypatch)


def train(root: Path, work: Path, config: NGRPOTrainingConfig, observe=lambda batch: {}) -> NGRPOTrainer:
    work.mkdir(exist_ok=True)
    start = root / "warm_start" / "model"
    torch.manual_seed(config.seed)
    return train_policy(
        model=AutoModelForCausalLM.from_pretrained(start),
        start=start,
        tokenizer=AutoTokenizer.from_pretrained(start, padding_side="left"),
        dataset=Dataset.from_parquet(str(root / "dataset" / "train.parquet"), cache_dir=str(work / "datasets")),
        validation=None,
        index=NeighborIndex.load(root / "neighbor_index"),
        config=config,
        work=work,
        output=work / "model",
        observers=[observe],
    ).trainer


def weights(trainer: NGRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_rollouts_are_those_of_the_weights_one_batch_ago(root, children, tmp_path, monkeypatch):
    batches: list[RolloutBatch] = []
    models, outputs = [], []
    score = NGRPOTrainer._generate_and_score_completions

    def remember(self, inputs):
        models.append(AutoModelForCausalLM.from_pretrained(root / "warm_start" / "model"))
        models[-1].load_state_dict(self.model.state_dict())  # the weights that this batch is trained from
        outputs.append(score(self, inputs))
        return outputs[-1]

    monkeypatch.setattr(NGRPOTrainer, "_generate_and_score_completions", remember)
    trainer = train(root, tmp_path, configured(), lambda batch: batches.append(batch) or {})
    history = [entry for entry in trainer.state.log_history if "rollout/steps_behind" in entry]
    assert [entry["rollout/steps_behind"] for entry in history] == [0, 2, 2, 2, 2, 2]
    assert [entry["rollout/index_version"] for entry in history] == [1, 1, 2, 3, 4, 5]
    assert all(entry["rollout/wait_seconds"] >= 0 for entry in history)
    assert len(batches) == BATCHES
    assert len(children) == 1

    temperature = trainer.temperature
    for number, batch in enumerate(batches):
        made_by, trained_from = models[max(number - 1, 0)], models[number]
        version = batch.rollouts[0].records.index_version
        mixer = mixer_for(made_by, "neighbor", CONFIG["mixing"]["rate"], "stop", version)
        engine = TransformersEngine(made_by, [EOS], PAD, 256)
        seeds = [request_seed(CONFIG["seed"], batch.step, 0, row) for row in range(len(batch.prompts))]
        expected = engine.generate(batch.prompts, seeds, Sampling(24, temperature), mixer)
        for ours, theirs in zip(batch.rollouts, expected, strict=True):
            assert (ours.token_ids, ours.logprobs, ours.finish_reason) == (
                theirs.token_ids,
                theirs.logprobs,
                theirs.finish_reason,
            )
            assert torch.equal(ours.records.positions, theirs.records.positions)
            assert torch.equal(ours.records.weights, theirs.records.weights)
        assert sum(len(rollout.records.positions) for rollout in batch.rollouts) > 50
        assert replay_error(made_by, batch.prompts, batch.rollouts, mixer, temperature) <= 1e-4
        behind = replay_error(trained_from, batch.prompts, batch.rollouts, mixer, temperature)
        assert (behind > 1e-2) == (number > 0), "weights of now are others, but for the first batch"
        require_true_ratios(outputs[number], batch, trained_from, mixer, temperature)


def require_true_ratios(output, batch: RolloutBatch, model, mixer, temperature: float) -> None:
    """Require that the loss is weighed by the policy's probabilities over those of what has generated; mixed steps by 1."""
    for row, rollout in enumerate(batch.rollouts):
        mixed = set(rollout.records.positions.tolist())
        ratios = output["importance_sampling_ratio"][row]
        scores = logprobs(model, batch.prompts[row], rollout, mixer, temperature)
        for place, (score, sampled) in enumerate(zip(scores.tolist(), rollout.logprobs, strict=True)):
            expected = 1.0 if place in mixed else min(float(torch.tensor(score - sampled).exp()), 3.0)
            assert ratios[place].item() == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def logprobs(model, prompt, rollout, mixer, temperature: float) -> torch.Tensor:
    """The tokens' log-probabilities with inputs mixed by hand: no code of ours but the neighbors."""
    embedding = model.get_input_embeddings().weight
    tokens = torch.tensor(rollout.token_ids)
    inputs = embedding[torch.tensor([*prompt, *rollout.token_ids])].clone()
    for place, shares in zip(rollout.records.positions.tolist(), rollout.records.weights, strict=True):
        anchor = tokens[place]
        candidates = torch.cat([anchor[None], mixer.neighbors[anchor][: len(shares) - 1].long()])
        inputs[len(prompt) + place] = (shares[:, None] * embedding[candidates]).sum(dim=0)
    logits = model(inputs_embeds=inputs[None]).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]


class Stopped(Exception):
    """Ends a training as a kill would."""


@pytest.mark.parametrize("strategy", ["neighbor", pytest.param("gaussian", marks=pytest.mark.long)])
def test_a_training_that_was_stopped_goes_on_with_the_batch_in_flight(root, children, tmp_path, strategy):
    config = configured(save_steps=4, steps=8)
    config = config.model_copy(update={"mixing": config.mixing.model_copy(update={"strategy": strategy})})
    whole = train(root, tmp_path / "whole", config)
    seen: list[int] = []

    def stop(batch: RolloutBatch) -> dict[str, float]:
        seen.append(batch.step)
        if batch.step == 4:
            raise Stopped
        return {}

    with pytest.raises(Stopped):
        train(root, tmp_path / "stopped", config, stop)
    saved = tmp_path / "stopped" / "checkpoints" / "checkpoint-4" / "rollouts_ahead"
    (part,) = saved.iterdir()
    assert part.name == "000000000.parquet"
    resumed = train(root, tmp_path / "stopped", config, lambda batch: seen.append(batch.step) or {})
    assert seen == [0, 2, 4, 4, 6]
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ends = [
        {
            name: value
            for name, value in trainer.state.log_history[-2].items()
            if "time" not in name and "seconds" not in name
        }
        for trainer in (resumed, whole)
    ]
    assert ends[0] == ends[1]
    assert not any(child.poll() is None for child in children), "engines end with their training"


def test_an_engine_that_dies_in_the_middle_of_a_batch_ends_the_training(root, children, tmp_path):
    def die(batch: RolloutBatch) -> dict[str, float]:
        if batch.step == 2:
            os.kill(children[0].pid, signal.SIGKILL)
        return {}

    with pytest.raises(EngineError) as caught:
        train(root, tmp_path, configured(), die)
    assert str(caught.value) == (
        "rollout engine: process 1 of 1 was killed by SIGKILL, for want of memory perhaps; its last line: none. Nothing of the batch is "
        "kept: run again, and training goes on from its last checkpoint"
    )


def test_an_engine_that_cannot_start_says_why(root, children, tmp_path, monkeypatch):
    load = engine_from_files.load_model
    monkeypatch.setattr(engine_from_files, "load_model", lambda directory, dtype: load(directory / "none", dtype))
    with pytest.raises(DataError, match=r"model directory .*none: no weights: model.safetensors missing"):
        train(root, tmp_path, configured())


# --- several processes, and vLLM ------------------------------------------------------------------------------------------


def started(
    root: Path, output: Path, processes: int, engine: str = "transformers", way: str = "copied"
) -> list[Script]:
    """Start the processes of a training, each with an engine in a separate process that is no fork."""
    return start("separate_training", root, output, processes, engine, way)


def finished(processes: list[Script], output: Path) -> list[list[dict]]:
    """Wait for processes, and return what each has seen."""
    finish(processes, output)
    return [json.loads((output / f"seen-{rank}.json").read_text()) for rank in range(len(processes))]


def written(root: Path, hidden_size: int = 64) -> Path:
    write_inputs(root, hidden_size)
    # One update a batch: TRL deals rows to several by the process that they are in.
    config = configured(steps=5, updates_per_batch=1, micro_batch_size=4, save_steps=1)
    (root / "config.json").write_text(config.model_dump_json())
    return root


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "way"),
    [
        ("transformers", "copied"),
        ("transformers", "sharded"),
        pytest.param("vllm", "sharded", marks=pytest.mark.engine),
    ],
)
def test_two_processes_with_an_engine_each_are_one(tmp_path, engine, way):
    root = written(tmp_path / "inputs", 64 if engine == "transformers" else 128)
    runs = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        runs[processes] = finished(started(root, output, processes, engine, way if processes > 1 else "copied"), output)
    (alone,) = runs[1]
    for seen in (alone, *runs[2]):
        assert [batch["step"] for batch in seen] == [0, 1, 2, 3, 4]
        assert max(batch["error"] for batch in seen) <= 1e-4
        assert min(batch["error_of_now"] for batch in seen[1:]) > 1e-2, "the weights must have moved"
    for number, batch in enumerate(alone):
        assert [*runs[2][0][number]["prompts"], *runs[2][1][number]["prompts"]] == batch["prompts"]
    # That of step 1 was made by weights that are still the same.
    assert [*runs[2][0][1]["tokens"], *runs[2][1][1]["tokens"]] == alone[1]["tokens"]
    ours, theirs = (load_file(tmp_path / run / "weights-0.safetensors") for run in ("2", "1"))
    if engine == "transformers":  # rows of another batch round in another way, and a token may then be another
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-3)


@pytest.mark.long
def test_one_process_goes_on_with_the_batch_in_flight_of_two(tmp_path):
    root = written(tmp_path / "inputs")
    two = tmp_path / "two"
    processes = started(root, two, 2, way="sharded")
    for line in processes[0].stdout:
        if line.startswith("at 2"):
            break
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
    checkpoint = two / "work" / "checkpoints" / "checkpoint-2"
    assert [path.name for path in sorted((checkpoint / "rollouts_ahead").iterdir())] == [
        "000000000.parquet",
        "000000016.parquet",
    ]
    saved = [
        row for path in sorted((checkpoint / "rollouts_ahead").iterdir()) for row in pq.read_table(path).to_pylist()
    ]
    one = tmp_path / "one"
    shutil.copytree(two / "work", one / "work")
    (seen,) = finished(started(root, one, 1), one)
    assert [batch["step"] for batch in seen] == [2, 3, 4]
    assert seen[0]["tokens"] == [row["tokens"] for row in saved]
    assert seen[1]["error"] <= 1e-4


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others_and_all_engines(tmp_path):
    root = written(tmp_path / "inputs")
    output = tmp_path / "output"
    processes = started(root, output, 2)
    for line in processes[0].stdout:
        if line.startswith("at 2"):
            break
    engines = [
        process
        for process in psutil.process_iter()
        if any(part == "ngrpo.rollout.separate_process" for part in process.cmdline())
        and process.ppid() in {each._process.pid for each in processes}
    ]
    assert len(engines) == 2
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait() != 0
    _, alive = psutil.wait_procs(engines, timeout=30)
    assert not alive
