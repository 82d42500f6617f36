"""Training that diverges, and results that are not finite: one clear line, and nothing is published."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from small_training import CONFIG, INPUTS, SELECTION, write_inputs
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.config import InitializedModel, NGRPOTrainingConfig, SFTWarmStartConfig, validate
from ngrpo.data import initialized
from ngrpo.data.models import materialize
from ngrpo.errors import DataError, TrainingError
from ngrpo.stages import ngrpo_training, soundness
from ngrpo.stages.context import Context
from ngrpo.training import policy_optimization
from ngrpo.training.marker import problem
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.warm_start import WarmStartTrainer, train_warm_start
from rewards import LengthReward

pytestmark = pytest.mark.pipeline

WARM_START = {"steps": 6, "batch_size": 4, "micro_batch_size": 2, "save_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture(autouse=True)
def _reward(monkeypatch):
    monkeypatch.setattr(policy_optimization, "CorrectnessReward", LengthReward)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


def checkpoints(work: Path) -> list[str]:
    """The complete checkpoints."""
    return sorted(path.name for path in (work / "checkpoints").iterdir() if problem(path) is None)


def warm_start(inputs: Path, work: Path, **changes) -> None:
    model = inputs / "warm_start" / "model"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number} + 1 ="}],
            "completion": [{"role": "assistant", "content": str(number + 1)}],
        }
        for number in range(8)
    ]
    config = validate(SFTWarmStartConfig, {"seed": 0, "model": CONFIG["model"], "warm_start": WARM_START})
    # Not validated: a learning rate beyond what settings may have stands for data that diverge with a usual one.
    config = config.model_copy(update={"warm_start": config.warm_start.model_copy(update=changes)})
    train_warm_start(
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model, padding_side="left"),
        Dataset.from_list(rows),
        config,
        work,
    )


def train(inputs: Path, root: Path, *, learning_rate: float | None = None, **changes) -> None:
    training = CONFIG["training"] | {"save_steps": 2, "steps": 8} | changes
    config = validate(NGRPOTrainingConfig, CONFIG | {"training": training})
    if learning_rate is not None:
        config = config.model_copy(
            update={"training": config.training.model_copy(update={"learning_rate": learning_rate})}
        )
    for name in ("output", "work"):
        (root / name).mkdir(exist_ok=True)
    ngrpo_training.run(config, {name: inputs / name for name in INPUTS}, root / "output", Context(root / "work"))


def spoil_loss(monkeypatch, trainer: type, step: int, value: float) -> None:
    """Let one micro-batch of a step have this loss, its gradients left as they are."""
    stock = trainer.training_step

    def spoiled(self, *arguments, **keywords):
        loss = stock(self, *arguments, **keywords)
        return loss * value if self.state.global_step + 1 == step else loss

    monkeypatch.setattr(trainer, "training_step", spoiled)


def spoil_gradient(monkeypatch, trainer: type, step: int, value: float) -> None:
    stock = trainer.training_step

    def spoiled(self, *arguments, **keywords):
        loss = stock(self, *arguments, **keywords)
        if self.state.global_step + 1 == step:
            next(self.model.parameters()).grad[0, 0] = value
        return loss

    monkeypatch.setattr(trainer, "training_step", spoiled)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("spoil", "name"), [(spoil_loss, "loss"), (spoil_gradient, "gradient norm")])
def test_a_warm_start_stops_at_the_first_number_that_is_not_finite(inputs, tmp_path, monkeypatch, spoil, name, value):
    spoil(monkeypatch, WarmStartTrainer, 5, value)
    said = rf"^step 5: the {name} is {value}: .* warm_start\.learning_rate=0\.001, .* set a smaller"
    for _ in range(2):  # the next try goes on from its checkpoint and says the same
        with pytest.raises(TrainingError, match=said):
            warm_start(inputs, tmp_path)
        assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(("spoil", "name"), [(spoil_loss, "loss"), (spoil_gradient, "gradient norm")])
def test_a_training_stops_at_the_first_number_that_is_not_finite(inputs, tmp_path, monkeypatch, spoil, name):
    spoil(monkeypatch, NGRPOTrainer, 3, math.nan)
    with pytest.raises(TrainingError, match=rf"^step 3: the {name} is nan: .* training\.learning_rate=0\.001"):
        train(inputs, tmp_path)
    assert checkpoints(tmp_path / "work") == ["checkpoint-2"]
    assert not (tmp_path / "output" / "metrics.json").exists()


@pytest.mark.parametrize("rate", [1e8, 1e30])
def test_a_learning_rate_that_is_far_too_high_is_one_clear_line(inputs, tmp_path, rate):
    with pytest.raises(TrainingError, match=r"^step \d: .*learning_rate="):
        warm_start(inputs, tmp_path / "warm", learning_rate=rate)
    with pytest.raises(TrainingError, match=r"^step \d: .*learning_rate="):
        train(inputs, tmp_path, learning_rate=rate)
    for name, selection in (("last", None), ("best", SELECTION)):
        (tmp_path / name).mkdir()
        settings = {"updates_per_batch": 1, "save_steps": 1, "selection": selection}
        with pytest.raises(TrainingError, match=r"^step \d: .*learning_rate="):
            train(inputs, tmp_path / name, learning_rate=rate, **settings)


def test_a_measure_that_is_not_finite_chooses_no_checkpoint(inputs, tmp_path):
    trainer = NGRPOTrainer.__new__(NGRPOTrainer)
    trainer.args = type("Arguments", (), {"learning_rate": 1.0})
    with pytest.raises(TrainingError, match="step 4: the eval_mean is nan"):
        trainer.require_finite(4, {"eval_mean": math.nan})


def payload(directory: Path, metrics: str = '{"loss": 1.5, "steps": 3}', **tensors: torch.Tensor) -> Path:
    (directory / "model").mkdir(parents=True)
    (directory / "metrics.json").write_text(metrics)
    save_file({"sound": torch.ones(3), **tensors}, directory / "model" / "model.safetensors")
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_not_published(tmp_path, dtype, value):
    bad = torch.tensor([[1.0, value], [2.0, 3.0]]).to(dtype)
    with pytest.raises(TrainingError, match=r"ngrpo_training: not published: .* 1 of 2 tensors .*\(bad\); set a"):
        soundness.require_finite("ngrpo_training", payload(tmp_path, bad=bad))


def test_weights_and_metrics_that_are_finite_are_published(tmp_path):
    ids, nothing, largest = torch.tensor([1, 2]), torch.zeros(0, 4), torch.full((2,), torch.finfo(torch.float32).max)
    soundness.require_finite("ngrpo_training", payload(tmp_path, ids=ids, nothing=nothing, largest=largest))


@pytest.mark.parametrize("metrics", ['{"loss": NaN}', '{"steps": 1, "loss": -Infinity}', '{"loss": 1e999}'])
def test_metrics_that_are_not_finite_are_not_published(tmp_path, metrics):
    with pytest.raises(TrainingError, match=r"not published: the metric loss is (nan|-?inf)"):
        soundness.require_finite("sft_warm_start", payload(tmp_path, metrics))


def test_a_base_model_whose_weights_are_not_finite_or_cut_is_refused(tmp_path, monkeypatch):
    def put_nan(path: Path) -> None:
        tensors = load_file(path)
        name = sorted(tensors)[0]
        save_file({**tensors, name: torch.full_like(tensors[name], math.nan)}, path, metadata={"format": "pt"})

    stock = initialized.write
    for spoil, said in (
        (put_nan, r"1 of \d+ tensors hold NaN or infinity"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "model.safetensors cannot be read"),
    ):

        def write(source, directory, weights, spoil=spoil):
            stock(source, directory, weights=weights)
            spoil(directory / "model.safetensors")

        monkeypatch.setattr(initialized, "write", write)
        with pytest.raises(DataError, match=said):
            materialize(InitializedModel(kind="initialized"), tmp_path / "base")
