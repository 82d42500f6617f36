"""A session of tests on a cluster: runs `ngrpo` as a user does, and inspects the results there."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes import client
from place import Place

from ngrpo.stages.declarations import STAGES
from ngrpo.stages.tries import Try, log_of, tries_of
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.kubeflow.client import OVER, connect

T = TypeVar("T")

NGRPO = str(Path(sys.executable).with_name("ngrpo"))
RUN_LABEL = "pipeline/runid"
STAGE_LABEL = "ngrpo/stage"
JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
ACTIVE = ("Pending", "Running", "Unknown")
TRAIN_JOBS = ("trainer.kubeflow.org", "v1alpha1")
MINUTES = 30.0
"""For a run of `tiny`, its images included; a few are enough on a cluster that has them."""
_PAUSE_SECONDS = 3.0
_SECONDS_BETWEEN_NEWS = 30.0


class Session:
    """Commands, runs and looks. All that it makes carries its mark: store, model and schedules are its own."""

    def __init__(self, place: Place, directory: Path, mark: str):
        """Begin.

        Args:
            place: The cluster.
            directory: An empty directory.
            mark: A name that nothing else has, for example `cluster-test-1a2b3c4d`.
        """
        self.place, self.directory, self.mark = place, directory, mark
        self.store = f"{place.config.cluster.store}/{mark}"
        self.model = f"ngrpo-{mark}"
        self.objects = ObjectStore(self.store)
        self.artifacts = ArtifactStore(self.objects, directory / "cache")
        self.kubeflow = connect()
        self._core = client.CoreV1Api(place.kubernetes)
        self.custom = client.CustomObjectsApi(place.kubernetes)
        self._own: dict[str, bool] = {}

    # --- commands ---------------------------------------------------------------------------------------------------

    def ngrpo(self, *arguments: str, variables: Mapping[str, str | None] | None = None) -> str:
        """Run a command, which must succeed, and return what it prints."""
        print(f"$ ngrpo {' '.join(arguments)}", flush=True)
        ended = subprocess.run(
            [NGRPO, *arguments], env=self._environment(variables or {}), capture_output=True, text=True
        )
        assert ended.returncode == 0, f"exit code {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    @contextmanager
    def beside(self, *arguments: str, variables: Mapping[str, str | None]) -> Iterator[Callable[[], None]]:
        """Run a command beside others; yields a function that waits for it, and fails the test if it did not succeed."""
        print(f"$ ngrpo {' '.join(arguments)} &", flush=True)
        log = self.directory / f"{arguments[0]}.log"
        with log.open("w") as file:
            process = subprocess.Popen([NGRPO, *arguments], env=self._environment(variables), stdout=file, stderr=file)

        def wait() -> None:
            assert process.wait(60 * MINUTES) == 0, log.read_text()

        try:
            yield wait
        finally:
            process.terminate()
            process.wait()

    def described(self, *settings: str) -> list[str]:
        """Return the options of a run on this cluster, in the store of this session."""
        own = (f"cluster.store={self.store}", f"promotion.model_name={self.model}", "cluster.retry.backoff_seconds=5")
        options = ["--preset", "tiny", "--cluster", str(self.place.settings), "--images", str(self.place.images)]
        return [*options, *(word for setting in (*own, *settings) for word in ("--set", setting))]

    def submit(self, *settings: str) -> str:
        """Submit a run with settings beside those of `tiny`, and return its id."""
        return _run_id(self.ngrpo("submit", "--no-wait", *self.described(*settings)))

    def rerun(self, stage: str, run: str) -> str:
        """Run a stage of a run again, and return the id of the new run."""
        return _run_id(self.ngrpo("rerun", stage, "--from", run, "--no-wait", "--images", str(self.place.images)))

    def _environment(self, variables: Mapping[str, str | None]) -> dict[str, str]:
        merged = {
            **os.environ,
            "COLUMNS": "200",
            "PYTHONUTF8": "1",
            "NGRPO_HOME": str(self.directory / "outputs"),
            **variables,
        }
        return {name: value for name, value in merged.items() if value is not None}

    # --- looks ------------------------------------------------------------------------------------------------------

    def until(self, what: str, look: Callable[[], T | None], minutes: float = MINUTES) -> T:
        """Look again and again until something is there, and return it; the test fails if it does not come in time."""
        began = said = time.monotonic()
        while True:
            found = look()
            now = time.monotonic()
            if found:
                return found
            if now - began > 60 * minutes:
                pytest.fail(f"{what}: not after {minutes:g} minutes", pytrace=False)
            if now - said > _SECONDS_BETWEEN_NEWS:
                said = now
                print(f"  {now - began:5.0f} s  waiting for {what}", flush=True)
            time.sleep(_PAUSE_SECONDS)

    def state(self, run: str) -> str:
        """Return the state of a run."""
        return str(self.kubeflow.get_run(run).state)

    def ended(self, run: str, minutes: float = MINUTES) -> str:
        """Wait for the end of a run, and return its state."""

        def final() -> str | None:
            state = self.state(run)
            return state if state in OVER else None

        state = self.until(f"the end of run {run}", final, minutes)
        print(f"  run {run}: {state}", flush=True)
        return state

    def succeeded(self, run: str, minutes: float = MINUTES) -> None:
        """Wait for a run, which must end well; if not, the test fails with its status."""
        state = self.ended(run, minutes)
        assert state == "SUCCEEDED", self.ngrpo("status", run)

    def pipeline(self, run: str) -> Mapping[str, Any]:
        """Return the pipeline of a run."""
        found = self.kubeflow.get_run(run)
        spec = found.pipeline_spec
        if spec is None:  # a run of a schedule refers to a version
            version = found.pipeline_version_reference
            spec = self.kubeflow.get_pipeline_version(version.pipeline_id, version.pipeline_version_id).pipeline_spec
        pipeline: Mapping[str, Any] = spec.get("pipeline_spec", spec)
        return pipeline

    def is_own(self, run: str) -> bool:
        """Whether a run is one of this session: its pipeline then names the session's store."""
        if run not in self._own:
            self._own[run] = self.mark in json.dumps(self.pipeline(run))
        return self._own[run]

    @property
    def own_runs(self) -> set[str]:
        """The runs of this session that were seen so far, deleted ones included."""
        return {run for run, own in self._own.items() if own}

    def keys(self, run: str) -> dict[str, str]:
        """Return the key of each stage that a run has a task for, in order."""
        tasks = self.pipeline(run)["root"]["dag"]["tasks"]
        found = {}
        for stage in STAGES:
            task = tasks.get(stage.replace("_", "-"))
            if task is not None:
                key = task["inputs"]["parameters"]["key"]["runtimeValue"]["constant"]
                found[stage] = key.replace("{{$.pipeline_job_uuid}}", run)
        return found

    def read(self, stage: str, key: str, name: str) -> Any:
        """Return what a JSON file of an artifact holds."""
        reference = self.artifacts.find(stage, key)
        assert reference is not None, f"no artifact {stage}/{key}"
        return json.loads((self.artifacts.fetch(reference, only=name) / name).read_text())

    def tries(self, run: str, stage: str) -> list[Try]:
        """Return the tries of a stage, oldest first."""
        return tries_of(self.objects, stage, self.keys(run)[stage])

    def log(self, attempt: Try) -> str:
        """Return what a try has printed."""
        return log_of(self.objects, attempt)

    def training_saved(self, run: str) -> bool:
        """Whether a whole checkpoint of a run's training is in the store."""
        places = self.objects.list(f"checkpoints/ngrpo_training/{self.keys(run)['ngrpo_training']}/")
        return any(place.endswith("/manifest.json") for place in places)

    def pods(self, *labels: str) -> list[Any]:
        """Return the pods with all of these labels, `name=value` or `name`, newest last."""
        found = self._core.list_namespaced_pod(self.place.namespace, label_selector=",".join(labels)).items
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)

    def pods_of(self, run: str, stage: str | None = None) -> list[Any]:
        """Return the pods of a run's steps, or those of one stage."""
        return self.pods(f"{RUN_LABEL}={run}", *([] if stage is None else [f"{STAGE_LABEL}={stage}"]))

    def stages_with_pods(self, run: str) -> set[str]:
        """Return the stages that a run has started a pod for, with `importer` if it has one of Kubeflow's importers."""
        pods = self.pods_of(run)
        importers = {"importer" for pod in pods if "importer" in pod.metadata.name}
        return {pod.metadata.labels[STAGE_LABEL] for pod in pods if STAGE_LABEL in pod.metadata.labels} | importers

    def own_pods(self) -> list[Any]:
        """Return the pods of this session: those of its runs, drivers included, and those that name its store, nodes included."""
        return [
            pod
            for pod in self.pods()
            if (pod.metadata.labels or {}).get(RUN_LABEL) in self.own_runs
            or self.mark in json.dumps(self.place.kubernetes.sanitize_for_serialization(pod))
        ]

    def running(self, run: str, stage: str) -> Any:
        """Return the pod of a stage that runs; none if there is none."""
        return next((pod for pod in self.pods_of(run, stage) if pod.status.phase == "Running"), None)

    def train_jobs(self) -> list[Any]:
        """Return the jobs of Kubeflow Trainer that this session's runs have made; none where Trainer is not installed."""
        try:
            found = self.custom.list_namespaced_custom_object(*TRAIN_JOBS, self.place.namespace, "trainjobs")
        except client.ApiException as error:
            if error.status == 404:
                return []
            raise
        return [job for job in found["items"] if self.mark in json.dumps(job)]

    def node_pods(self) -> list[Any]:
        """Return the pods of these jobs that run."""
        names = {job["metadata"]["name"] for job in self.train_jobs()}
        return [
            pod
            for pod in self.pods(JOB_LABEL)
            if pod.metadata.labels[JOB_LABEL] in names and pod.status.phase == "Running"
        ]

    # --- damage -----------------------------------------------------------------------------------------------------

    def delete_pod(self, pod: Any) -> None:
        """Delete a pod at once, as if its node were gone."""
        print(f"  deleting pod {pod.metadata.name}", flush=True)
        self._core.delete_namespaced_pod(pod.metadata.name, self.place.namespace, grace_period_seconds=0)

    def kill_stage(self, pod: Any) -> bool:
        """Kill the stage in a pod, as the kernel does for want of memory; its step goes on. False if there is no stage to kill yet."""
        command = ["kubectl", "--namespace", self.place.namespace, "exec", pod.metadata.name, "--container", "main"]
        ended = subprocess.run([*command, "--", "python3", "-c", _KILL], capture_output=True, text=True)
        killed = ended.returncode == 0 and ended.stdout.strip() != "0"
        if killed:
            print(f"  killed the stage in pod {pod.metadata.name}", flush=True)
        return killed


_KILL = """
import contextlib, os, pathlib, signal
killed = 0
for process in pathlib.Path("/proc").iterdir():
    with contextlib.suppress(OSError):  # a process that has just ended
        if (process / "cmdline").read_bytes().split(b"\\0")[1:3] == [b"-m", b"ngrpo.stages.attempt"]:
            os.kill(int(process.name), signal.SIGKILL)
            killed += 1
print(killed)
"""
"""Kills the process of a try, and says how many it has killed."""


def _run_id(printed: str) -> str:
    found = re.search(r"^run\s+([0-9a-f-]{36})\b", printed, re.MULTILINE)
    assert found is not None, printed
    return found[1]
