"""Submit runs to a cluster. They are planned first, so that no pod starts for a result that is in the store."""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ngrpo.checking.examination import require_possible
from ngrpo.config import RunConfig, validate
from ngrpo.errors import ClusterError, ConfigError
from ngrpo.report.phases import phase
from ngrpo.sizing.fit import misfits
from ngrpo.stages.declarations import DECLARED
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.kubeflow.client import connect, experiment_id, explained
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_pipeline
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.links import links
from ngrpo_kfp.pipelines.kubeflow.preflight import require
from ngrpo_kfp.pipelines.planning.content import require_in_pods
from ngrpo_kfp.pipelines.planning.ledger import expectations, expectations_table
from ngrpo_kfp.pipelines.planning.nodes import History, Plan
from ngrpo_kfp.pipelines.planning.plan import make_plan
from ngrpo_kfp.pipelines.planning.signatures import require_key_in_pods, require_verified_base
from ngrpo_kfp.pipelines.planning.summary import plan_table

if TYPE_CHECKING:
    from kfp import Client

EXPERIMENT = "ngrpo-experiment"
"""Name of the pipeline of an experiment."""
_TOKENS = "rerun_tokens"


def submit(
    config: RunConfig,
    images: Images,
    console: Console,
    *,
    cache: Path,
    name: str,
    rerun: str | None = None,
) -> str:
    """Plan a run, submit the stages that have to run, and return the run's id.

    Args:
        config: Configuration of the run.
        images: Where the images of the stages are looked up.
        console: Where plan and run are shown.
        cache: Directory of verified downloads, in which the planner stores what it reads.
        name: Name of the run.
        rerun: A node, or a stage with one node only, to run again although the store has its result.

    Raises:
        NGRPOError: The user can fix it. Nothing was submitted, unless the message says that this is unknown.
    """
    require_possible(config)
    require_in_pods(config)
    require_key_in_pods(config)
    with phase(console, "looking at the store, compiling"):
        objects = ObjectStore(config.cluster.store)
        objects.check()
        require_verified_base(config, config.cluster.store)
        store = ArtifactStore(objects, cache)
        tokens = rerun_tokens(objects)
        asked: dict[str, str] = {}
        if rerun is not None:
            again = _plan(config, images, None, tokens).find(rerun)
            if DECLARED[again.stage].cacheable:
                # Tokens sort by time, and the last one counts.
                asked = {again.base_key: f"{time.time_ns():020d}-{secrets.token_hex(4)}"}
        plan = _plan(config, images, store, tokens | asked)
        require_pods(config, images, plan.stages_to_run)
        text = compile_pipeline(config, plan, images, caching=False)
    console.print(plan_table(plan, config))
    if plan.to_run:
        console.print(expectations_table(expectations(plan, config, objects, here=False), config.costs))
    with phase(console, "looking at the cluster, submitting"):
        client = connect()
        require(config, images, console, plan.stages_to_run)
        run = start(client, config, text, name)
        # Store rerun tokens only once the run is accepted.
        for base_key, token in asked.items():
            objects.put_bytes(b"", f"{_TOKENS}/{base_key}/{token}")
    return show_started(run, console)


def start(client: Client, config: RunConfig, text: str, name: str) -> Any:
    """Start a run of a compiled pipeline on a cluster, and return the run.

    Args:
        client: Client of the cluster.
        config: Configuration of the run.
        text: The pipeline.
        name: Name of the run.

    Raises:
        ClusterError: It was not accepted, or the outcome is unknown.
    """
    experiment = experiment_id(client)
    with package(text) as path, explained(f"run of {config.preset}"):
        return client.run_pipeline(
            experiment,
            name,
            str(path),
            service_account=config.cluster.service_account,
        )


def show_started(run: Any, console: Console) -> str:
    """Print the links to a run, and return its id."""
    console.print(f"run  {run.run_id} ({run.display_name})", soft_wrap=True)
    for line in links(run.run_id):
        console.print(line, soft_wrap=True)
    return str(run.run_id)


def require_pods(config: RunConfig, images: Images, stages: Collection[str]) -> None:
    """Refuse stages that request more than a pod can get, or too little, or have no image. Reports all; compilation stops at the first.

    Raises:
        ConfigError: A line for each.
    """
    problems: dict[str, None] = {}
    for stage in stages:
        needs = config.needs(stage)
        looks: tuple[Callable[[], object], ...] = (
            partial(config.cluster.require_room, stage, needs),
            partial(images.reference, "gpu" if needs.gpus else "cpu"),
        )
        for look in looks:
            try:
                look()
            except ConfigError as error:
                problems[str(error)] = None
    problems |= {misfit.line: None for misfit in misfits(config, stages)}
    if problems:
        raise ConfigError("\n".join(problems))


def recorded_config(client: Client, run_id: str) -> RunConfig:
    """Return the configuration of a run on the cluster, which its pipeline contains.

    Raises:
        ClusterError: There is no such run, or it was not made by ngrpo.
        ConfigError: This version does not understand its configuration.
    """
    spec = pipeline_of(client, run_id)
    try:
        tree = json.loads(spec["pipelineInfo"]["description"])
    except (KeyError, ValueError) as error:
        raise ClusterError(f"run {run_id}: its pipeline holds no configuration: it was not made by ngrpo") from error
    try:
        return validate(RunConfig, tree)
    except ConfigError as error:
        raise ConfigError(
            f"run {run_id} was made by another version of ngrpo: submit its preset again ({error})"
        ) from error


def require_no_experiment(client: Client, run_id: str) -> None:
    """Refuse a run of an experiment, for a command that needs a run of one preset.

    Raises:
        ClusterError: It is one, or there is no such run.
    """
    if pipeline_of(client, run_id)["pipelineInfo"]["name"] == EXPERIMENT:
        raise ClusterError(
            f"run {run_id} is an experiment of several configurations: submit it again (ngrpo experiment submit): finished results are kept"
        )


def pipeline_of(client: Client, run_id: str) -> Mapping[str, Any]:
    """Return the pipeline of a run on the cluster.

    Raises:
        ClusterError: There is no such run.
    """
    with explained(f"run {run_id}"):
        run = client.get_run(run_id)
        spec = run.pipeline_spec
        if spec is None:  # the run of a schedule refers to a pipeline version
            version = run.pipeline_version_reference
            spec = client.get_pipeline_version(version.pipeline_id, version.pipeline_version_id).pipeline_spec
    # With platform settings the API has both documents, otherwise only the pipeline.
    pipeline: Mapping[str, Any] = spec.get("pipeline_spec", spec)
    return pipeline


@contextmanager
def package(text: str) -> Iterator[Path]:
    """Provide a compiled pipeline as a file, which kfp's client needs."""
    with tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        path = Path(scratch) / "pipeline.yaml"
        path.write_text(text, encoding="utf-8")
        yield path


def _plan(config: RunConfig, images: Images, store: ArtifactStore | None, tokens: Mapping[str, str]) -> Plan:
    return make_plan(
        config, run="", store=store, rerun_tokens=tokens, history=History(), versions=images.versions(config)
    )


def rerun_tokens(objects: ObjectStore) -> dict[str, str]:
    """Return the rerun token of each result that a rerun was requested for, by its key without a token.

    On a cluster they are stored beside the artifacts, where every planner finds them. A token is the name of an empty object, so two
    simultaneous requests do not overwrite each other.
    """
    names = (key.split("/") for key in objects.list(f"{_TOKENS}/"))
    return {base_key: token for _, base_key, token in names}
