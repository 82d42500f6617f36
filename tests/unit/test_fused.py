"""The fused kernels match the torch code under Triton's interpreter; the cases are in `tests/fused_cases.py`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ngrpo.config import load_config
from ngrpo.config.mixing import FUSED_STRATEGIES
from ngrpo.mixing.strategies import READY, Gaussian, Neighbor, Token
from ngrpo.rollout import fused
from ngrpo.rollout.configured_strategy import load_strategy, strategy_source
from ngrpo_kfp.pipelines.planning.nodes import Plan
from ngrpo_kfp.pipelines.planning.summary import plan_table

SCRIPT = Path(__file__).parents[1] / "fused_cases.py"
PRESET = Path(__file__).parents[2] / "pipelines/presets/paper-1.5b.toml"
CASES = re.findall(r"^def (case_\w+)", SCRIPT.read_text(), re.M)
LONG = ["case_the_tests_of_slots_pass_with_kernels"]


def printed(script: Path, *arguments: str, **environment: str) -> Any:
    paths = [str(script.parent), str(script.parent / "unit")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes():
    return printed(SCRIPT, *(case for case in CASES if case not in LONG))


@pytest.mark.parametrize("case", [case for case in CASES if case not in LONG])
def test_kernels_under_the_interpreter(case, outcomes):
    assert outcomes[case] == ""


@pytest.mark.long
@pytest.mark.parametrize("case", LONG)
def test_kernels_under_the_interpreter_at_length(case):
    assert printed(SCRIPT, case) == {case: ""}


@pytest.mark.long
def test_kernels_compile_for_gpus(tmp_path):
    compiled = printed(SCRIPT.with_name("compiled_kernels.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert {each["kernel"] for each in compiled} == {"scan_blocks", "decide_rows", "mix_rows"}
    assert all(each["bytes"] for each in compiled)
    # What makes or breaks a tie is divided as IEEE has it.
    assert [each["ieee_division"] for each in compiled if each["kernel"] == "decide_rows"] == [True] * 3
    assert compiled[0]["ieee_division"]


def test_a_subclass_of_a_strategy_is_not_served():
    class Own(Neighbor):
        pass

    assert [fused.serves(each) for each in (Neighbor(1), Neighbor(5), Token())] == [True] * 3
    assert not fused.serves(Own(3))
    assert not fused.serves(Gaussian(0.5))


def test_a_plan_for_gpus_says_which_rollouts_take_the_slower_path():
    assert {name for name, strategy in READY.items() if strategy in fused.SERVED} == set(FUSED_STRATEGIES)
    assert "take the slower path" not in planned("rollout.engine=vllm")
    assert "take the slower path" not in planned("rollout.engine=transformers", "mixing.strategy=gaussian")
    shown = planned("rollout.engine=vllm", "mixing.strategy=gaussian")
    assert "mixing.strategy=gaussian take the slower path through torch; neighbor and token have GPU kernels" in shown
    for setting in ("strategy=soft", "strategy=gumbel", "label=sampled", "weights=release"):
        assert f"steps with mixing.{setting} take the slower path" in planned(
            "rollout.engine=vllm", f"mixing.{setting}"
        )
        strategy = load_strategy(strategy_source(load_config(PRESET, [f"mixing.{setting}"]).mixing))
        assert not fused.serves(strategy), "the plan and the kernels agree"


def test_a_plan_says_where_rollouts_cannot_differ():
    shown = planned("mixing.rate=1")
    assert "warning: mixing.rate=1 with strategy='neighbor' and label='anchor' takes the most likely token" in shown
    assert "takes the most likely token" not in planned()


def planned(*overrides: str) -> str:
    console = Console(width=200, record=True)
    console.print(plan_table(Plan({}), load_config(PRESET, list(overrides))))
    return " ".join(console.export_text().split())
