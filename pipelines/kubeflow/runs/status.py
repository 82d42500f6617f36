"""Status of a run on a cluster: the state of each node, and why it failed or waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from kfp import Client
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.stages.tries import Try
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.components.launching.pending_pods import why_ended, why_pending
from ngrpo_kfp.pipelines.kubeflow.client import connect
from ngrpo_kfp.pipelines.kubeflow.harmless_text import harmless
from ngrpo_kfp.pipelines.kubeflow.links import links
from ngrpo_kfp.pipelines.kubeflow.runs.costs import cost_lines
from ngrpo_kfp.pipelines.kubeflow.runs.facts import RunFacts
from ngrpo_kfp.pipelines.kubeflow.runs.workflows import why_failed
from ngrpo_kfp.pipelines.kubeflow.scheduling.runs_of_the_day import submitted_by
from ngrpo_kfp.pipelines.kubeflow.submitted_runs import find_run, key_of
from ngrpo_kfp.pipelines.kubeflow.unpullable_images import never_pulled
from ngrpo_kfp.pipelines.planning.nodes import stage_of, task_name


@dataclass(frozen=True)
class StageView:
    """Status of a node of a run, that is, of a stage at its place in the pipeline."""

    stage: str
    """Name of the node."""
    state: str
    """`cached`, `not run`, `waiting`, `running`, `succeeded`, `failed` or `cancelled`."""
    time: str = ""
    """Duration so far, from the start of its first pod."""
    tries: str = ""
    """Number of its last try: `2 of 3`."""
    why: str = ""
    """Why it failed, or what it waits for."""


@dataclass(frozen=True)
class RunView:
    """Status of a run."""

    run_id: str
    name: str
    state: str
    over: bool
    stages: Sequence[StageView]
    why: str | None
    """Why the run failed, if no node did."""
    stuck: str | None
    """The image that cannot be pulled, so that the run can never continue."""
    submitted: Sequence[str]
    """Ids of the runs of the day that a scheduled run has submitted."""
    mlflow_run: str | None
    """Id of its MLflow run, if its stages have opened one."""
    weights: Sequence[str]
    """Locations of the models that it trained or took from the cache, `s3://…/model/`."""
    notes: Sequence[str]
    """What could not be read, and why."""


def look(client: Client, run_id: str | None) -> RunView:
    """Return the status of a run.

    Args:
        client: Client of Kubeflow Pipelines.
        run_id: The run; None for the newest.

    Raises:
        ClusterError: There is no such run, or Kubeflow cannot be reached. What else cannot be read is in `notes`.
    """
    return _view_of(RunFacts(client, find_run(client, run_id)))


def _view_of(facts: RunFacts) -> RunView:
    nodes = [_view(facts, node) for node in facts.nodes]
    failed = facts.state == "failed" and not any(view.state == "failed" for view in nodes)
    return RunView(
        run_id=facts.run_id,
        name=facts.run.display_name,
        state=facts.state,
        over=facts.over,
        stages=nodes,
        why=(why_failed(facts.workflow) or "no reason is known") if failed else None,
        stuck=None if facts.over else never_pulled(chain(facts.pods, *(job.pods for job in facts.jobs.values()))),
        submitted=[str(run.run_id) for run in submitted_by(facts.client, facts.run_id)] if facts.plans else (),
        mlflow_run=facts.mlflow_run,
        weights=list(_weights(facts, nodes)),
        notes=list(dict.fromkeys(facts.notes)),
    )


def show_status(run_id: str | None, console: Console, *, as_json: bool = False) -> None:
    """Show the status of a run.

    Args:
        run_id: The run; None for the newest.
        console: Where it is shown.
        as_json: Print a `RunView` as JSON, for programs.

    Raises:
        ClusterError: There is no such run, or Kubeflow cannot be reached.
    """
    client = connect()
    facts = RunFacts(client, find_run(client, run_id))
    view = _view_of(facts)
    if as_json:
        console.print_json(data=asdict(view), indent=1)
        return
    costs = list(cost_lines(facts))  # not part of the view, which is read again and again while a run is followed
    table = Table(title=escape(harmless(f"{view.name}: {view.state}")))
    for column in ("stage", "", "time", "tries"):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    for node in view.stages:
        table.add_row(node.stage, node.state, node.time, node.tries, escape(harmless(node.why)))
    console.print(table)
    for line in (*costs, *_lines(view)):
        console.print(escape(harmless(line)), soft_wrap=True)


def _lines(view: RunView) -> Iterator[str]:
    """Yield the lines below the table of a run."""
    if view.why is not None:
        yield f"why  {view.why}"
    if view.stuck is not None:
        yield f"stuck  {view.stuck}; `ngrpo cancel {view.run_id}` ends the run"
    yield from view.notes
    for submitted in view.submitted:
        yield f"run of the day  {submitted}: `ngrpo status {submitted}`"
    yield f"run  {view.run_id}"
    yield from links(view.run_id, view.mlflow_run)
    for place in view.weights:
        yield f"weights  {place}"


def _weights(facts: RunFacts, nodes: Sequence[StageView]) -> Iterator[str]:
    """Yield where the models are that a run trained or took from earlier runs; the nodes that read them have the addresses."""
    for node in nodes:
        if stage_of(node.stage) == "ngrpo_training" and node.state == "succeeded" and facts.objects is not None:
            key = key_of(facts.tasks[node.stage], facts.run_id)
            if key is not None:
                yield f"{facts.objects.uri}/ngrpo_training/{key}/model/"
    told = (task["inputs"]["parameters"].get("trained_known") for task in facts.tasks.values())
    references = [Reference.from_json(each["runtimeValue"]["constant"]) for each in told if each is not None]
    yield from dict.fromkeys(f"{reference.uri}model/" for reference in references)


def _view(facts: RunFacts, node: str) -> StageView:
    if node not in facts.tasks:
        return StageView(node, "cached")
    task = facts.task(node)
    state = str(task.state or "") if task is not None else ""
    # A node that was never reached has no task, or one without a state.
    if task is None or state in ("", "RUNTIME_STATE_UNSPECIFIED", "SKIPPED"):
        return StageView(node, "not run" if facts.over else "waiting")
    tries = facts.tries(node)
    counted = _counted(tries)
    if state == "SUCCEEDED":
        return StageView(node, "succeeded", _duration(task), counted)
    if state == "FAILED" or facts.over:
        failed = bool(tries) and tries[-1].outcome == "failed"
        if facts.cancelled and not failed:
            return StageView(node, "cancelled", _duration(task), counted)
        return StageView(node, "failed", _duration(task), counted, _why_failed(facts, node, tries))
    state, why = _going(facts, node, tries)
    return StageView(node, state, _duration(task), counted, why)


def _going(facts: RunFacts, node: str, tries: Sequence[Try]) -> tuple[str, str]:
    """Return the state of a node that has not ended, and what it waits for."""
    pod = facts.last_pod(node)
    if pod is not None and pod.status.phase == "Pending":
        return "waiting", facts.why_waiting(pod) or "its pod is being started"
    if pod is not None and pod.status.phase == "Failed":
        return "waiting", f"its pod is gone ({why_ended(pod) or 'no reason given'}); another one follows"
    waits = facts.job_waits(node)
    if waits is not None:
        return "waiting", waits
    failed = [one for one in tries if one.outcome == "failed"]
    return "running", f"try {failed[-1].number} failed: {failed[-1].error}" if failed else ""


def _why_failed(facts: RunFacts, node: str, tries: Sequence[Try]) -> str:
    """Return why a node failed: the reason that it recorded, or else the messages of Kubernetes or Argo on its pod."""
    last = tries[-1] if tries else None
    if last is not None and last.outcome == "failed" and last.error:
        return last.error
    pod = facts.last_pod(node)
    told = (why_ended(pod) or why_pending(pod)) if pod is not None else None
    argo = why_failed(facts.workflow, task_name(node))
    reasons = "; ".join(dict.fromkeys(reason for reason in (told, argo) if reason is not None))
    return reasons or f"no reason is known: `ngrpo logs {node} {facts.run_id}`"


def _counted(tries: Sequence[Try]) -> str:
    if not tries:
        return ""
    last, pods = tries[-1], len({one.pod for one in tries})
    return f"{last.number} of {last.of}" + (f", pod {pods}" if pods > 1 else "")


def _duration(task: Any) -> str:
    if task.start_time is None or task.start_time.timestamp() <= 0:
        return ""
    running = task.end_time is None or task.end_time.timestamp() <= 0
    end = datetime.now(UTC) if running else task.end_time
    return str(end - task.start_time).partition(".")[0]
