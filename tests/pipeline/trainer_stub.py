"""A stateful stub of the Kubernetes API that Kubeflow's trainer client uses, on the loopback interface.

Trainer's kinds are checked against the types that Kubeflow publishes (`kubeflow_trainer_api`), and refused for what its webhooks refuse.
A test sets the course of a job in `states`: each request for the job takes one, and the last one stays.
"""

import json
import re
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api import models

NAMESPACE = "ngrpo"
RUNTIME = yaml.safe_load((Path(__file__).parents[2] / "k8s/overlays/gpu/training-runtime.yaml").read_text())
_TYPES = {"TrainJob": models.TrainerV1alpha1TrainJob, "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime}
_JOB = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ngrpo/trainjobs"
_RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ngrpo/trainingruntimes/ngrpo-training"
_PODS = "/api/v1/namespaces/ngrpo/pods"
WORKFLOW = {
    "apiVersion": "argoproj.io/v1alpha1",
    "kind": "Workflow",
    "name": "ngrpo-post-training-44gvd",
    "uid": "w1",
    "controller": True,
    "blockOwnerDeletion": True,
}
_CONDITIONS = {"Complete": ("Complete", "AllJobsCompleted", ""), "Failed": ("Failed", "FailedJobs", "jobset failed")}


def unknown_fields(document):
    """Return the fields of a document that its kind does not have."""
    known = _TYPES[document["kind"]].from_dict(document).to_dict()
    return list(_missing(document, known, document["kind"]))


def _missing(value, known, path):
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in known:
                yield f"{path}.{name}: no such field"
            else:
                yield from _missing(inner, known[name], f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _missing(inner, known[number], f"{path}[{number}]")


class Cluster:
    """What is on the cluster."""

    def __init__(self):
        self.jobs = {}
        self.made = []
        self.deleted = []
        self.states = ["Running", "Complete"]
        """Pending, Running, Complete, Failed, Gone."""
        self.later = []
        """`states` of the jobs that are made after the first."""
        self.grace = 0
        """Looks at a deleted job until its pods have ended."""
        self.overlaps = 0
        """Jobs that were made while pods of one before them were still there."""
        self.step = {"name": "step-1", "uid": "u1", "ownerReferences": [WORKFLOW]}
        """Metadata of the pod that follows the job."""
        self.step_env = []
        """Environment variables of that pod, as Kubernetes has them."""
        self.log = ["step 1/2", "step 2/2"]
        self.pending = {}
        """What Kubernetes says of a pod that has not started, beside its phase."""
        self.runtimes = [_RUNTIME]
        self.faults = []
        """[method, pattern of the path, status, how often]; status 0 closes the connection."""
        self.looked_at = threading.Event()
        self.completed = lambda: None
        self._state = "Pending"
        self._published = False
        self._ending = 0

    def answer(self, method, path, query, body):
        """Return status and answer: an object, or text."""
        if path == "/api/v1/namespaces/kubeflow-system/configmaps/kubeflow-trainer-public":
            return 200, {"kind": "ConfigMap", "apiVersion": "v1", "data": {"kubeflow_trainer_version": "v2.3.0"}}
        if path in self.runtimes:
            return 200, RUNTIME
        if path == _JOB and method == "POST":
            return self._create(json.loads(body))
        if path.startswith(f"{_JOB}/"):
            return self._job(method, path.rpartition("/")[2], query)
        if path == f"{_PODS}/{self.step['name']}":
            spec = {"containers": [{"name": "wait"}, {"name": "main", "env": self.step_env}]}
            return 200, {"kind": "Pod", "apiVersion": "v1", "metadata": self.step, "spec": spec}
        if path == _PODS:
            (name,) = re.findall(r"jobset-name=([\w-]+)", query["labelSelector"][0])
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self._pods(name)}
        if path.startswith(_PODS) and path.endswith("/log"):
            assert query["container"] == ["node"]
            return 200, "".join(f"{line}\n" for line in [*self.log, f"said by {path.split('/')[-2]}"])
        return 404, "not found"

    def _create(self, job):
        wrong = unknown_fields(job)
        spec = job["spec"]
        for patch in spec["runtimePatches"]:
            for one in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
                containers = one["template"]["spec"]["template"]["spec"]["containers"]
                wrong += ["must not have envs for the node container" for each in containers if "env" in each]
        wrong += [f"reserved: {one['name']}" for one in spec["trainer"]["env"] if one["name"].startswith("PET_")]
        if wrong:
            return 422, str(wrong)
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, f'trainjobs "{name}" already exists'
        stamp = {"creationTimestamp": datetime.now(UTC).isoformat(), "namespace": NAMESPACE}
        if self.made and self.later:
            self.states = self.later.pop(0)
        self.overlaps += self._ending > 0
        self.made.append(job)
        self.jobs[name] = {**job, "metadata": {**job["metadata"], **stamp}}
        return 201, self.jobs[name]

    def _job(self, method, name, query):
        job = self.jobs.get(name)
        if job is not None and "deletionTimestamp" in job["metadata"] and method == "GET":
            self._ending -= 1
            if self._ending == 0:
                del self.jobs[name]
            return 200, job
        if job is None:
            return 404, f'trainjobs "{name}" not found'
        if method == "DELETE":
            self.deleted.append(name)
            self._ending = self.grace
            if self.grace and query.get("propagationPolicy") == ["Foreground"]:
                job["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat()
            else:
                del self.jobs[name]
            return 200, {}
        if "status" in job:  # left by an earlier try
            return 200, job
        self.looked_at.set()
        self._state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if self._state == "Gone":
            del self.jobs[name]
            return 404, f'trainjobs "{name}" not found'
        if self._state == "Complete" and not self._published:
            self._published = True
            self.completed()
        kind = _CONDITIONS.get(self._state)
        # A queue's: it is there from the start, and says nothing about the end.
        conditions = [{"type": "Suspended", "status": "False", "reason": "Resumed", "message": ""}]
        conditions += [{"type": kind[0], "status": "True", "reason": kind[1], "message": kind[2]}] if kind else []
        for condition in conditions:
            condition["lastTransitionTime"] = job["metadata"]["creationTimestamp"]
        return 200, {**job, "status": {"conditions": conditions}}

    def _pods(self, name):
        phases = {"Complete": ["Succeeded"] * 2, "Failed": ["Running", "Failed"], "Pending": ["Running", "Pending"]}
        if name not in self.jobs:
            return []
        resources = self.jobs[name]["spec"]["trainer"]["resourcesPerNode"]
        return [
            {
                "metadata": {
                    "name": f"{name}-node-0-{rank}",
                    "creationTimestamp": self.jobs[name]["metadata"]["creationTimestamp"],
                    "labels": {
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(rank),
                    },
                },
                "spec": {"containers": [{"name": "node", "resources": resources}]},
                "status": {"phase": phase} | (self.pending if phase == "Pending" else {}),
            }
            for rank, phase in enumerate(phases.get(self._state, ["Running"] * 2))
        ]


@contextmanager
def serve(kubeconfig):
    """Serve the API, and write how it is reached; yields its state."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self):
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            for fault in cluster.faults:
                if fault[3] and fault[0] == self.command and re.search(fault[1], parts.path):
                    fault[3] -= 1
                    if fault[2]:
                        self.send(fault[2], f"it fails with {fault[2]}")
                    return
            self.send(*cluster.answer(self.command, parts.path, parse_qs(parts.query), body))

        do_GET = do_POST = do_DELETE = handle_one

        def send(self, status, answer):
            if status >= 400:
                answer = {"kind": "Status", "status": "Failure", "code": status, "message": answer}
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    context = {"cluster": "stub", "user": "stub", "namespace": NAMESPACE}
    reached = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "stub",
        "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "stub", "user": {}}],
        "contexts": [{"name": "stub", "context": context}],
    }
    kubeconfig.write_text(yaml.safe_dump(reached))
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
