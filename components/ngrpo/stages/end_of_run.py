"""The exit task of a run on a cluster: finds out how the run ended, and notifies its webhooks.

Kubeflow's own status is not used: KFP 2.17 gives an exit task no reason for a failure, and a task whose pod was killed may still count as
"running" by then. The artifact store has both: a node without an artifact has failed, and the records of its tries say why. The decision
of a promotion and the outcome of a deployment are artifacts too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.config.notifications import NotificationConfig
from ngrpo.contracts.deployment import DEPLOYMENT, read_deployment
from ngrpo.contracts.promotion import PROMOTION, read_promotion
from ngrpo.environment import addresses_without_users, adopt_s3_names, redacted
from ngrpo.errors import NGRPOError
from ngrpo.notifications.events import Event, Fact, decided, deployed
from ngrpo.notifications.webhooks import announce
from ngrpo.stages.surroundings import Surroundings
from ngrpo.stages.tries import tries_of
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore

_PROMOTION = "model_promotion"
_DEPLOYMENT = "deploy"
_CURE = "run the stage again"
_CANCELLED = ("CANCELED", "CANCELLED")
_STORE_PATIENCE = 60.0
"""Seconds to retry an unreachable store."""


class Node(TypedDict):
    """A node that the run had to run."""

    name: str
    stage: str
    key: str
    """Key of its result; empty if that is the id of the run."""


class Told(TypedDict):
    """What the exit task receives when the pipeline is compiled."""

    what: str
    """Title of the run: its preset or experiment."""
    model: str
    """The registered model."""
    nodes: list[Node]
    """Nodes that it had to run, in order."""
    notifications: dict[str, NotificationConfig]


def tell(told_json: str, run: str, state: str | None) -> None:
    """Notify the webhooks of a run how it ended. An error here is logged, not raised, so that it cannot fail the run.

    Args:
        told_json: `Told` as JSON.
        run: Id of the run.
        state: Kubeflow's status of the run; only used to recognise a cancelled run.
    """
    adopt_s3_names()
    with addresses_without_users():
        told = TypeAdapter(Told).validate_json(told_json)
        if state in _CANCELLED:
            print(f"run {run} was cancelled: nobody is told", flush=True)
            return
        try:
            events = _events(told, run)
        except NGRPOError as error:
            print(f"run {run}: how it ended is not known: {redacted(str(error))}", file=sys.stderr, flush=True)
            return
        for event in events:
            print(f"{event.kind}: {redacted(event.summary)}", flush=True)
            announce(told["notifications"], event)


def _events(told: Told, run: str) -> list[Event]:
    """Return the events of a run, in order; an empty list if its decision changed nothing.

    Raises:
        NGRPOError: The store cannot be reached, or what it holds is damaged.
    """
    surroundings = Surroundings.from_environment()
    objects = ObjectStore(surroundings.store, patience=_STORE_PATIENCE)
    store = ArtifactStore(objects, surroundings.cache)
    found = {node["name"]: store.find(node["stage"], node["key"] or run) for node in told["nodes"]}
    missing = [node for node in told["nodes"] if found[node["name"]] is None]
    # A pipeline of a cluster has one promotion and one deployment at most.
    by_stage = {node["stage"]: found[node["name"]] for node in told["nodes"]}
    decision, deployment_of_run = by_stage.get(_PROMOTION), by_stage.get(_DEPLOYMENT)
    facts: dict[str, Fact] = {"of": told["what"], "missing": len(missing)}
    if missing and (decision is None or [node["stage"] for node in missing] != [_DEPLOYMENT]):
        return [Event("failed", run, told["model"], None, _why(objects, missing, run), facts)]
    if decision is None:
        done = f"{told['what']}: its {len(found)} stages are done"
        return [Event("finished", run, None, None, done, {"of": told["what"]})]
    promotion = read_promotion(store.fetch(decision, only=PROMOTION), _CURE)
    events = [decided(promotion, run)]
    if missing:
        why = _why(objects, missing, run)
        events.append(Event("not_deployed", run, promotion["model"], promotion["version"], why, facts))
    elif deployment_of_run is not None:
        deployment = read_deployment(store.fetch(deployment_of_run, only=DEPLOYMENT), _CURE)
        if deployment["decision"] == "deployed":
            about = deployment["model"], deployment["version"], run
            events.append(deployed(*about, deployment["reason"], deployment["differences"], kept=True))
    return [event for event in events if event is not None]


def _why(objects: ObjectStore, missing: Sequence[Node], run: str) -> str:
    """Return the first node that failed in this run and why, without details that must not leave the cluster."""
    for node in missing:
        tries = [one for one in tries_of(objects, node["stage"], node["key"] or run) if one.pipeline_run == run]
        if tries:
            last = tries[-1]
            lost = "its pod was lost" if last.outcome in ("running", "lost", "stopped") else "it failed"
            return f"{node['name']}: {last.reason or lost}"
    return f"{missing[0]['name']}: its pod did not get as far as to start; `ngrpo status {run}` may know more"
