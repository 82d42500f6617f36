"""Run one stage: fetch its inputs, do the work, publish the artifact, report to MLflow.

Nothing here depends on where the stage runs; the environment says that (`ngrpo.stages.surroundings`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ngrpo.environment import PRICES, addresses_without_users, redacted
from ngrpo.errors import NGRPOError, Preempted, StoreError
from ngrpo.stages.context import Context, Deployer
from ngrpo.stages.process import attach, write_record
from ngrpo.stages.surroundings import ERROR_FILE, REASON, Surroundings, job_reporters
from ngrpo.stages.task import Task
from ngrpo.storage.disk import disk_fault

if TYPE_CHECKING:
    from ngrpo.stages.metering import Metered
    from ngrpo.storage.manifest import Reference

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux (getrusage(2))


@addresses_without_users()
def run_task(
    task: Task,
    elsewhere: Callable[[Task], None] | None = None,
    *,
    deploy: Deployer | None = None,
    own_process: bool = True,
) -> None:
    """Do the work of a stage in this process, unless its result is in the store already.

    Args:
        task: The task; only the first of several nodes writes `output` and `metrics`.
        elsewhere: Lets other processes do the work and publish the artifact; none if this one does it.
        deploy: See `Context`.
        own_process: Whether this process exists only for the stage: then it writes the stage's log and ends with its run.

    Raises:
        NGRPOError: The user can fix the problem. Any other error is a defect. Either way the run's record of the node
            says what happened, and nothing is stored under the key.
        Preempted: The process was told to stop (SIGTERM) and had the time to save a checkpoint; a step of Kubeflow does not have it.
    """
    if own_process:
        sys.excepthook = _print_redacted
    surroundings = Surroundings.from_environment()
    record: dict[str, Any] = {"key": task.key, "pid": os.getpid()}
    process = None
    if surroundings.run_directory is not None:
        if own_process:
            process = attach(surroundings.run_directory, task.node_name)
        write_record(surroundings.run_directory, task.node_name, record)
    started = time.monotonic()
    try:
        # Imported late because it is slow: the run already shows the stage as running.
        from ngrpo.stages.metering import metered

        with metered(task, surroundings, follows=elsewhere is not None) as process_meter:
            values, reference, cached = _execute(task, surroundings, elsewhere, process_meter, deploy)
        record["cached"] = cached
        if reference is not None:
            record |= {"artifact": reference.uri, "digest": reference.digest}
            if task.output:
                reference.write(Path(task.output))
            if task.metrics:
                _write_json(Path(task.metrics), values)
        if process is not None:
            process.succeeded = True
    except BaseException as error:
        record["error"] = redacted(_say(error, surroundings))
        record["reason"] = _reason(error, surroundings)
        if os.environ.get(ERROR_FILE):
            Path(os.environ[ERROR_FILE]).write_text(record["error"], encoding="utf-8")
            Path(os.environ[ERROR_FILE] + REASON).write_text(record["reason"], encoding="utf-8")
        raise
    finally:
        if surroundings.run_directory is not None:
            record["seconds"] = round(time.monotonic() - started, 3)
            record["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
            write_record(surroundings.run_directory, task.node_name, record)


def _execute(
    task: Task,
    surroundings: Surroundings,
    elsewhere: Callable[[Task], None] | None,
    meter: Metered,
    deploy: Deployer | None,
) -> tuple[dict[str, float], Reference | None, bool]:
    # Imported late, as above.
    from ngrpo.config import validate
    from ngrpo.contracts.metrics import read_metrics
    from ngrpo.ledger.prices import figures, read_prices
    from ngrpo.stages.declarations import DECLARED
    from ngrpo.stages.keys import digest
    from ngrpo.stages.soundness import require_finite
    from ngrpo.storage.artifacts import ArtifactStore
    from ngrpo.storage.checkpoint_store import CheckpointStore
    from ngrpo.storage.objects import ObjectStore

    name, key = task.stage, task.key
    stage = DECLARED[name]
    config = validate(stage.config, json.loads(task.config_json))
    objects = ObjectStore(surroundings.store, proven=True)  # the plan has used it, so an outage is retried
    store = ArtifactStore(objects, surroundings.cache)
    place = surroundings.work / stage.name / key
    checkpoints = CheckpointStore(objects, f"checkpoints/{stage.name}/{key}", place / "downloads")
    found = store.find_sound(stage.name, key) if stage.cacheable else None
    cached = found is not None
    if found is None and elsewhere is not None:
        elsewhere(replace(task, inputs={source: _reference(text).to_json() for source, text in task.inputs.items()}))
        meter.outcome = "ended"
        found = store.find(stage.name, key)
        if found is None:
            raise StoreError(
                f"{name}: its nodes have finished, but {surroundings.store} has no artifact {key}: do they use the same store?"
            )
    if found is not None:
        # The publisher may have been killed before deleting it.
        checkpoints.clear()
        shutil.rmtree(place, ignore_errors=True)
        return read_metrics(store.fetch(found, only="metrics.json")), found, cached

    references = {source: _reference(text) for source, text in task.inputs.items()}
    payload = place / "output"
    work = place / "work"
    # A failed try may have left files in the output; files to resume from are in `work`.
    shutil.rmtree(payload, ignore_errors=True)
    payload.mkdir(parents=True)
    work.mkdir(exist_ok=True)

    from ngrpo.tracking.mlflow_runs import stage_run
    from ngrpo.tracking.system_metrics import system_metrics

    tags = {"ngrpo.stage": name, "ngrpo.key": key, "ngrpo.code_version": task.code_version}
    first = surroundings.node_rank == 0
    with (
        surroundings.parent_run(task.node_name, objects) if first else nullcontext() as parent,
        stage_run(task.node_name, parent, tags) if first else nullcontext() as tracked,
        nullcontext() if tracked is None else system_metrics(tracked.run_id),
    ):
        if tracked is not None:
            tracked.log_settings(config.model_dump(mode="json"))
            for source, reference in references.items():
                tracked.log_input(source, reference.uri, reference.digest)
        directories = {source: store.fetch(reference) for source, reference in references.items()}
        context = Context(
            work=work,
            store=surroundings.store,
            checkpoints=None if surroundings.store_is_local else checkpoints.place,
            save_minutes=surroundings.save_minutes,
            processes=surroundings.processes,
            reporters=() if tracked is None else ("mlflow", *job_reporters()),
            on_cluster=surroundings.pipeline_run is not None,
            variable=os.environ.get,
            prices=os.environ.get(PRICES),
            deploy=deploy,
        )
        processes = surroundings.processes or 1
        if stage.parallel and processes * surroundings.nodes > 1:
            from ngrpo.stages import torchrun

            torchrun.run(stage.name, config, directories, payload, context, processes=processes)
        else:
            stage.function()(config, directories, payload, context)
        if not first:
            meter.outcome = "ended"
            return {}, None, False
        require_finite(name, payload)
        published = store.publish(
            stage.name,
            key,
            payload,
            config_digest=digest(task.config_json),
            code_version=task.code_version,
            inputs={source: reference.key for source, reference in references.items()},
        )
        meter.outcome = "published"
        values = read_metrics(payload)
        if tracked is not None:
            spent = figures(meter.cost(objects), read_prices(os.environ.get(PRICES)))
            tracked.log_metrics(values | {f"cost/{name}": value for name, value in spent.items()})
            tracked.set_tags({"ngrpo.artifact": published.uri, "ngrpo.digest": published.digest})
    checkpoints.clear()
    shutil.rmtree(place)
    return values, published, False


def _say(error: BaseException, surroundings: Surroundings) -> str:
    """Return the message of an error for the user."""
    if isinstance(error, NGRPOError | Preempted):
        return str(error)
    fault = disk_fault(error, surroundings.work, surroundings.cache)
    if fault is not None:
        return fault
    return "".join(traceback.format_exception_only(error)).strip()


def _reason(error: BaseException, surroundings: Surroundings) -> str:
    """Return the message of an error for a notification."""
    from ngrpo.notifications.reasons import reason_of

    return disk_fault(error, surroundings.work, surroundings.cache) or reason_of(error)


def _reference(text: str) -> Reference:
    from ngrpo.storage.manifest import Reference

    return Reference.from_json(text) if text.startswith("{") else Reference.read(Path(text))


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the error that ends this process, without credentials: one line for a known problem, a traceback for a defect."""
    if isinstance(error, NGRPOError):
        sys.stderr.write(f"{redacted(str(error))}\n")
        return
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Kubeflow refuses results with a number that JSON cannot express.
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
