"""Models saved by a stage: weights in the type of later stages, and no second copy of a model that is passed on."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from made_up_run import PRESETS
from ngrpo.config import SFTWarmStartConfig, load_config, select
from ngrpo.rollout.loading import load_model, load_tokenizer
from ngrpo.stages.context import Context
from ngrpo.stages.sft_warm_start import run
from ngrpo.training.trained_model import save_model
from tiny import save_tiny_model


def saved(start: Path, directory: Path, dtype: str, kept: set[str] | None = None) -> Path:
    """Save a model with weights that bfloat16 cannot hold, as a trainer does."""
    model = load_model(start, "float32")
    model._keep_in_fp32_modules_strict = kept
    trainer = SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        processing_class=AutoTokenizer.from_pretrained(start),
        is_world_process_zero=lambda: True,
    )
    save_model(trainer, directory, dtype)
    return directory


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("start") / "model")


def test_a_model_in_bfloat16_has_half_of_the_bytes_and_answers_as_one_in_float32(start, tmp_path):
    whole, half = (saved(start, tmp_path / dtype, dtype) for dtype in ("float32", "bfloat16"))
    assert load_file(whole / "model.safetensors").keys() == load_file(half / "model.safetensors").keys()
    assert {tensor.dtype for tensor in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    assert (half / "model.safetensors").stat().st_size < 0.55 * (whole / "model.safetensors").stat().st_size
    assert [AutoConfig.from_pretrained(path).dtype for path in (whole, half)] == [torch.float32, torch.bfloat16]
    loaded = [load_model(path, "bfloat16") for path in (whole, half)]
    tokenizers = [load_tokenizer(path, loaded[0].config.vocab_size) for path in (whole, half)]
    answers = []
    for model, tokenizer in zip(loaded, tokenizers, strict=True):
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "3 + 4 ="}], return_tensors="pt")
        torch.manual_seed(0)
        answers.append(model.generate(**prompt, do_sample=True, max_new_tokens=40, num_return_sequences=4))
    assert torch.equal(*answers)
    for name, tensor in loaded[0].state_dict().items():
        assert torch.equal(tensor, loaded[1].state_dict()[name])


def test_what_is_loaded_in_float32_whatever_the_type_of_a_model_stays_float32(start, tmp_path):
    half = saved(start, tmp_path / "half", "bfloat16", kept={"input_layernorm"})
    for name, tensor in load_file(half / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if "input_layernorm" in name else torch.bfloat16), name


def test_a_model_that_training_starts_from_keeps_all_of_its_digits(start, tmp_path):
    before, after = (load_file(path / "model.safetensors") for path in (start, saved(start, tmp_path / "m", "float32")))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any((tensor.bfloat16().float() != tensor).any() for tensor in before.values()), "else nothing is shown"


@pytest.mark.parametrize("same_file_system", [True, False])
def test_a_base_model_that_is_passed_on_is_not_written_again(tmp_path, monkeypatch, same_file_system):
    if not same_file_system:

        def refused(source: str, target: str) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refused)
    settings = ["warm_start.steps=0", "model.source.hidden_size=16", "model.source.layers=1"]
    config = select(load_config(PRESETS / "tiny.toml", settings), SFTWarmStartConfig)
    (tmp_path / "output").mkdir()
    run(config, {}, tmp_path / "output", Context(tmp_path / "work"))
    base, model = tmp_path / "work" / "base_model", tmp_path / "output" / "model"
    names = sorted(path.name for path in base.iterdir())
    assert "model.safetensors" in names
    assert names == sorted(path.name for path in model.iterdir())
    for name in names:
        assert (base / name).read_bytes() == (model / name).read_bytes()
        assert (base / name).samefile(model / name) == same_file_system
        assert not (model / name).is_symlink(), "it outlives the base model"
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())
