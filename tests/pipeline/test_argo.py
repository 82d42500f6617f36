"""Retries as Argo makes them of a pipeline: of the one that ran on a real cluster, and of those we compile now.

What this proves: of the Workflow that KFP 2.17.0 made on a real cluster our reader gets the strategy that Argo wrote into the pod, and what
the reader makes of our pipelines has the same form. What it does not: that Argo does what its source says (`make test-cluster` does), and
anything about an installation with other defaults.
"""

import json
from pathlib import Path

import pytest
import yaml
from argo import TEMPLATE_DEFAULTS, Retries, effective, most_pods, phase, retry_parameters, strategies, workflow_of
from golden_ir import WHOLE, compiled

from ngrpo.stages.declarations import STAGES

CASE = Path(__file__).parents[1] / "data" / "kfp-2.17.0"
MINUTE = 60.0
EXIT_1 = {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 1}}}]}
EXIT_143 = {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 143}}}]}
EVICTED = {"message": "The node was low on resource: memory."}
NEVER_STARTED = {"initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "ErrImagePull"}}}]}


def task_name(stage):
    return stage.replace("_", "-")


@pytest.fixture(scope="module")
def case():
    return yaml.safe_load((CASE / "workflow.yaml").read_text())


@pytest.fixture(scope="module")
def tasks(case):
    """By name: the task of the pipeline that a task of the Workflow was made from."""
    (root,) = [template for template in case["spec"]["templates"] if template["name"] == "root"]
    given = {
        task["name"]: {one["name"]: one["value"] for one in task["arguments"]["parameters"]}
        for task in root["dag"]["tasks"]
    }
    return {name: json.loads(given[f"{name}-driver"]["task"]) for name in map(task_name, STAGES)}


@pytest.fixture(scope="module")
def now():
    return {preset: workflow_of(compiled(preset)[0]) for preset in ("tiny", WHOLE)}


# --- the pipeline that ran on a real cluster -------------------------------------------------------------------------------


def test_the_reader_gets_the_strategy_that_argo_wrote_into_the_pod(case):
    seen = json.loads((CASE / "effective-retry.json").read_text())["retryStrategy"]
    assert effective(case, "sft-warm-start")[-1] == seen


def test_our_form_of_a_pipeline_has_the_retries_of_the_real_workflow(case, tasks):
    ours = workflow_of({"root": {"dag": {"tasks": tasks}}})
    for name, task in tasks.items():
        assert effective(ours, name) == effective(case, name)
        assert (retry_parameters(task) == []) == (name == "model-promotion")


@pytest.mark.parametrize(
    ("pod", "retried"), [(None, True), (NEVER_STARTED, True), (EXIT_1, False), (EXIT_143, False), (EVICTED, False)]
)
def test_a_failure_is_not_retried_and_a_lost_pod_is(case, now, pod, retried):
    for workflow in (case, *now.values()):
        strategy = strategies(workflow, "ngrpo-training")[-1]
        verdict = strategy.after(phase(pod), tries=1, first_made=0, ended=MINUTE)
        assert verdict.again == retried
        assert retried or verdict.why == "Node not set to be retried"


def test_the_loss_of_a_pod_after_an_hour_ended_a_run_and_before_it_left_the_next_try_the_rest(case, now):
    before, after = (strategies(workflow, "ngrpo-training")[-1] for workflow in (case, now["tiny"]))
    late = {"tries": 1, "first_made": 0, "ended": 61 * MINUTE}
    early = {"tries": 1, "first_made": 0, "ended": 30 * MINUTE}
    assert before.after("Error", **late).why == "Max duration limit exceeded"
    assert before.after("Error", **early).deadline == 60 * MINUTE
    assert after.after("Error", **late).again
    assert after.after("Error", **early).deadline > 30 * MINUTE + 8760 * 3600 - 3600


def test_a_pod_that_is_preempted_time_and_again_waits_no_longer_each_time(case, now):
    def waits(strategy):
        tries = range(1, strategy.limit + 1)
        return [strategy.after("Error", tries=each, first_made=0, ended=0).starts for each in tries]

    assert waits(strategies(case, "ngrpo-training")[-1]) == [60, 120]
    assert waits(strategies(now["tiny"], "ngrpo-training")[-1]) == [10] * 5


def test_retries_are_nested_and_every_stage_has_them_whether_it_asks_for_them_or_not(case, now):
    assert {most_pods(case, task_name(stage)) for stage in STAGES} == {81}
    assert {most_pods(now["tiny"], task_name(stage)) for stage in STAGES} == {6 * 27}
    default = Retries.read(TEMPLATE_DEFAULTS["retryStrategy"])
    assert strategies(now["tiny"], "model-promotion")[:-1] == [default] * 3


# --- what we compile now --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_lost_pods_of_every_stage_are_replaced_soon_and_for_a_year(now, stage):
    expected = Retries(limit=5, policy="OnError", wait=10.0, factor=1, longest=365 * 24 * 3600.0)
    assert {strategies(workflow, task_name(stage))[-1] for workflow in now.values()} == {expected}


def test_no_lost_pod_is_replaced_where_none_is_asked_for():
    workflow = workflow_of(compiled("tiny", "cluster.retry.lost_pods=0")[0])
    strategy = strategies(workflow, "ngrpo-training")[-1]
    assert strategy.after("Error", tries=1, first_made=0, ended=0).why == "No more retries left"


def test_a_factor_that_is_no_whole_number_ends_in_an_error():
    policy = {"maxRetryCount": 2, "backoffDuration": "60s", "backoffFactor": 1.5, "backoffMaxDuration": "3600s"}
    workflow = workflow_of({"root": {"dag": {"tasks": {"a": {"retryPolicy": policy}}}}})
    with pytest.raises(ValueError, match=r"1\.5"):
        strategies(workflow, "a")
