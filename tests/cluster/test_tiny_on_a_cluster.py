"""The preset `tiny` on the cluster that KUBECONFIG names (`make test-cluster`): it succeeds, also when things break.

The tests build on each other, in this order: what the first run has published is what later ones find.
"""

import json
import re
import time
from datetime import UTC, datetime

import pytest
from queues import queue_of_one_stage
from session import ACTIVE, Session

from ngrpo.stages.declarations import STAGES
from ngrpo_kfp.pipelines.kubeflow.client import OVER, every, existing_experiment

AT_HOME = {
    "AWS_ENDPOINT_URL": None,
    "AWS_ACCESS_KEY_ID": None,
    "AWS_SECRET_ACCESS_KEY": None,
    "AWS_DEFAULT_REGION": None,
    "MLFLOW_TRACKING_URI": None,
    "NGRPO_STORE": None,
}
"""Environment of a run on this machine, with services of its own."""
CHEAP = ("evaluation.samples=2", "evaluation.pass_at=[1]", "training.selection.samples=2")
QUICK = (*CHEAP, "training.steps=4", "training.save_steps=2")
"""Settings of a run whose result does not matter."""
LONG = (*CHEAP, "training.steps=60", "training.save_steps=3")
"""Settings of a run that is disturbed in its training."""
FRESH = ("seed=1", "warm_start.steps=20", "warm_start.save_steps=20")
"""Settings with which no stage is in the store."""
EVERY_MINUTE = "0 * * * * *"


def training(number: int) -> str:
    """Return a setting that gives a test a training of its own, while the stages before it are found in the store."""
    return f"training.learning_rate={2 + number / 100:.2f}e-4"


@pytest.fixture(scope="session")
def first_run(cluster: Session) -> str:
    """A run of `tiny`, undisturbed."""
    run = cluster.submit()
    cluster.succeeded(run)
    return run


def test_the_first_run_has_the_keys_and_the_decision_of_a_run_on_this_machine(cluster, request):
    at_home = {**AT_HOME, "NGRPO_HOME": str(cluster.directory / "home")}
    options = ("--preset", "tiny", "--set", f"promotion.model_name={cluster.model}")
    planned = dict(re.findall(r"(\w+)\s+│\s+([0-9a-f]{12})\s", cluster.ngrpo("plan", *options, variables=at_home)))
    with cluster.beside("run", *options, variables=at_home) as local_run:
        run = request.getfixturevalue("first_run")
        local_run()

    summary = json.loads((cluster.directory / "home" / "latest" / "summary.json").read_text())
    keys = cluster.keys(run)
    assert list(keys) == list(STAGES)
    for stage in STAGES:
        if STAGES[stage].cacheable:  # the key of a decision is that of its run
            assert keys[stage] == summary["stages"][stage]["key"]
            assert keys[stage].startswith(planned[stage])
    decision = cluster.read("model_promotion", keys["model_promotion"], "promotion.json")
    assert decision["decision"] == summary["promotion"]["decision"]


def test_a_second_run_finds_everything_and_starts_no_pod_but_that_of_promotion(cluster, first_run):
    run = cluster.submit()
    cluster.succeeded(run)
    assert list(cluster.keys(run)) == ["model_promotion"]
    assert cluster.stages_with_pods(run) == {"model_promotion"}


def test_a_stage_that_is_run_again_runs_with_what_depends_on_it(cluster, first_run):
    run = cluster.rerun("benchmark_evaluation", first_run)
    cluster.succeeded(run)
    assert cluster.stages_with_pods(run) == {"benchmark_evaluation", "model_promotion"}


def test_a_stage_that_fails_twice_ends_well_and_every_try_is_shown(cluster, first_run):
    run = cluster.submit(*QUICK, training(1), "cluster.retry.times=2")
    for number in (1, 2):

        def kill(number=number) -> bool:
            tries = cluster.tries(run, "ngrpo_training")
            pod = cluster.running(run, "ngrpo_training")
            going_on = len(tries) == number and tries[-1].outcome == "running"
            return bool(going_on and pod is not None and cluster.kill_stage(pod))

        cluster.until(f"try {number} of the training, to be killed", kill)
    cluster.succeeded(run)
    tries = cluster.tries(run, "ngrpo_training")
    assert [attempt.outcome for attempt in tries] == ["failed", "failed", "succeeded"]
    assert len({attempt.pod for attempt in tries}) == 1, "tries after a failure are made in one pod"
    assert all(attempt.error for attempt in tries[:2])
    log = cluster.ngrpo("logs", "ngrpo_training", run)
    assert set(re.findall(r"try (\d) of 3", log)) == {"1", "2", "3"}
    assert cluster.log(tries[-1]).strip().splitlines()[0] in log
    assert "3 of 3" in _row(cluster.ngrpo("status", run), "ngrpo_training")


def test_training_whose_pod_is_deleted_goes_on_to_the_same_rewards(cluster, first_run):
    run = cluster.rerun("ngrpo_training", first_run)
    cluster.until("the first checkpoint", lambda: cluster.training_saved(run))
    cluster.delete_pod(cluster.running(run, "ngrpo_training"))
    cluster.succeeded(run)
    tries = cluster.tries(run, "ngrpo_training")
    assert [attempt.outcome for attempt in tries] == ["lost", "succeeded"]
    assert "resuming from checkpoint-" in cluster.log(tries[-1])
    assert _rewards(cluster, run) == _rewards(cluster, first_run)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_that_is_cancelled_in_training_leaves_no_pod_and_no_job(cluster, first_run, nodes):
    run = cluster.submit(*LONG, training(1 + nodes), *_nodes(nodes))
    cluster.until("training", lambda: cluster.training_saved(run))
    assert nodes == 1 or cluster.train_jobs()
    cluster.ngrpo("cancel", run)
    # KFP 2.17 calls such a run FAILED; its status must not.
    assert cluster.ended(run, minutes=5) in ("CANCELED", "FAILED")
    cluster.until(
        "the end of pods and jobs",
        lambda: not any(pod.status.phase in ACTIVE for pod in cluster.own_pods()) and not cluster.train_jobs(),
        minutes=12,  # nodes have ten to save in
    )
    status = cluster.ngrpo("status", run)
    assert re.search(r": cancelled\s*$", status, re.MULTILINE)
    assert "cancelled" in _row(status, "ngrpo_training")
    for stage in ("benchmark_evaluation", "model_promotion"):
        assert "not run" in _row(status, stage)
    for stage in ("prepare_data", "neighbor_index", "sft_warm_start"):
        assert "cached" in _row(status, stage)


def test_a_schedule_starts_runs_and_makes_up_for_none_that_it_missed(cluster, first_run):
    name = f"{cluster.mark}-minute"
    cluster.ngrpo("schedule", "create", name, "--cron", EVERY_MINUTE, *cluster.described())
    assert name in cluster.ngrpo("schedule", "list")
    first, *_ = cluster.until("a run of the schedule", lambda: _scheduled(cluster), minutes=5)
    cluster.ngrpo("schedule", "pause", name)
    cluster.succeeded(first)
    cluster.until("the end of runs that had begun", lambda: _all_over(cluster))
    before = _scheduled(cluster)
    _sleep_until_second(5, of_minute_after=1)
    assert _scheduled(cluster) == before, "a paused schedule starts no run"

    cluster.ngrpo("schedule", "resume", name)
    while datetime.now(UTC).second < 45:
        assert _scheduled(cluster) == before, "what was missed is not made up for"
        time.sleep(2)
    cluster.until("the next run", lambda: len(_scheduled(cluster)) > len(before), minutes=5)
    cluster.ngrpo("schedule", "delete", name)
    assert name not in cluster.ngrpo("schedule", "list")
    cluster.succeeded(_scheduled(cluster)[-1])
    cluster.until("the end of all runs", lambda: _all_over(cluster))


def test_a_run_that_is_preempted_by_another_still_ends(cluster, first_run):
    with queue_of_one_stage(cluster) as queue:
        in_queue = f"cluster.queue={queue.name}"
        low = cluster.submit(*LONG, training(4), in_queue, f"cluster.priority_class={queue.low}")
        cluster.until("training", lambda: cluster.training_saved(low))
        high = cluster.submit(*QUICK, *FRESH, in_queue, f"cluster.priority_class={queue.high}")
        seen: set[str] = set()
        order: list[str] = []

        def both_over() -> bool:
            seen.update(pod.metadata.uid for pod in cluster.pods_of(low, "ngrpo_training"))
            order.extend(run for run in (high, low) if run not in order and cluster.state(run) in OVER)
            return len(order) == 2

        cluster.until("the end of both runs", both_over, minutes=60)
        print(f"  training of the lower run: {len(seen)} pods", flush=True)
        cluster.succeeded(high)
        cluster.succeeded(low)
        assert order == [high, low]
        assert len(seen) > 1, "nothing was preempted"
        assert "resuming from checkpoint-" in cluster.log(cluster.tries(low, "ngrpo_training")[-1])


def test_a_training_on_two_nodes_that_loses_one_still_ends(cluster, first_run):
    run = cluster.submit(*LONG, training(5), *_nodes(2))
    cluster.until("two nodes that train", lambda: len(cluster.node_pods()) == 2 and cluster.training_saved(run))
    cluster.delete_pod(cluster.node_pods()[-1])
    cluster.succeeded(run)
    outcomes = [attempt.outcome for attempt in cluster.tries(run, "ngrpo_training")]
    assert "failed" in outcomes
    assert outcomes[-1] == "succeeded"
    assert not cluster.train_jobs()


def test_a_schedule_that_starts_from_the_champion_runs_it(cluster, first_run):
    name = f"{cluster.mark}-champion"
    before = len(_scheduled(cluster))
    options = cluster.described(*QUICK, training(6))
    cluster.ngrpo("schedule", "create", name, "--base", "champion", "--cron", EVERY_MINUTE, *options)
    planning = cluster.until("a run of the schedule", lambda: _scheduled(cluster)[before:], minutes=5)[0]
    cluster.ngrpo("schedule", "delete", name)
    cluster.succeeded(planning)
    (of_the_day,) = [run for run in _own_runs(cluster) if _starts_from_a_version(cluster, run)]
    cluster.succeeded(of_the_day)
    assert "ngrpo_training" in cluster.keys(of_the_day)


def test_nothing_is_left_behind(cluster, first_run):
    import leftovers  # imports MLflow, which takes seconds

    leftovers.remove(cluster)
    assert leftovers.left(cluster) == []


def _nodes(number: int) -> tuple[str, ...]:
    """Return the settings of a training on so many nodes; a batch is shared by all of them."""
    if number == 1:
        return ()
    return (
        f"cluster.nodes={number}",
        "cluster.training_token=ngrpo-training-token",
        f"training.micro_batch_size={256 // number}",
    )


def _rewards(cluster: Session, run: str) -> list[tuple[int, float]]:
    """Return the reward of each step of a run's training."""
    history = cluster.read("ngrpo_training", cluster.keys(run)["ngrpo_training"], "log_history.json")
    rewards = [(entry["step"], entry["reward"]) for entry in history if "reward" in entry]
    assert rewards
    return rewards


def _row(table: str, stage: str) -> str:
    """Return the line of a stage in what `ngrpo status` prints."""
    (line,) = [line for line in table.splitlines() if re.search(rf"\b{stage}\b", line)]
    return line


def _scheduled(cluster: Session) -> list[str]:
    """Return the runs that schedules of this session have started, oldest first; a schedule that is resumed may be a new one."""
    return [run for run in _own_runs(cluster) if cluster.kubeflow.get_run(run).recurring_run_id]


def _own_runs(cluster: Session) -> list[str]:
    """Return all runs of this session, oldest first."""
    experiment = existing_experiment(cluster.kubeflow)
    runs = every(cluster.kubeflow.list_runs, "runs", experiment_id=experiment, sort_by="created_at asc")
    return [run.run_id for run in runs if cluster.is_own(run.run_id)]


def _all_over(cluster: Session) -> bool:
    return all(cluster.state(run) in OVER for run in _own_runs(cluster))


def _starts_from_a_version(cluster: Session, run: str) -> bool:
    """Whether the stages of a run start from a registered version of the session's model."""
    return bool(cluster.keys(run)) and '\\"registered\\"' in json.dumps(cluster.pipeline(run))


def _sleep_until_second(second: int, *, of_minute_after: int) -> None:
    """Sleep until a second of the minute after so many whole minutes more."""
    now = datetime.now(UTC)
    time.sleep(60 * (1 + of_minute_after) - now.second + second - now.microsecond / 1e6)
