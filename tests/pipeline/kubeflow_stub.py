"""A stateful Kubeflow Pipelines API (v2beta1), with the part of Kubernetes that logs need, on the loopback interface.

Requests and answers are checked against the types that the API publishes (`kfp_server_api`), and the pipelines it is given
against those of the pipeline specification: a field that the real API does not have is refused here too.
"""

import json
import re
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from ngrpo.stages.tries import begin, keep
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning.nodes import stage_of, task_name

_SERIALIZER = api.ApiClient()
_IN_ORDER = (
    "prepare-data",
    "neighbor-index",
    "sft-warm-start",
    "ngrpo-training",
    "benchmark-evaluation",
    "model-promotion",
)


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Kubeflow:
    """The state of the API, with methods for tests to change it."""

    def __init__(self):
        self.experiments, self.pipelines, self.versions, self.runs, self.schedules = {}, {}, {}, {}, {}
        self.pods = []
        """`(run id, stage, log)` of each pod, oldest first; `pod-N` is its name."""
        self.pod_status = {"phase": "Running"}
        """Status of every pod, but those in `pod_statuses`, which are by number."""
        self.pod_statuses = {}
        self.pod_labels = {}
        """Labels of pods, by number, that do not have that of their run: those of jobs."""
        self.secrets = {}
        """By name, the keys of the secrets on the cluster."""
        self.multi_user = False
        """Whether experiments and pipelines belong to namespaces."""
        self.clock_ahead = timedelta()
        """How far the clock in the answers is ahead of this machine's."""
        self.missed = set()
        """Schedules whose last time came while they were paused."""
        self.deleted_workflows = []
        """Runs that were active when their schedule was deleted, and were deleted with it."""
        self.objects = cluster()
        """Other objects of Kubernetes: JSON answers by path of the request. Anything else is answered with 404."""
        self.workflows = {}
        """By run id, what Argo says of its Workflow."""
        self.deleted = []
        """Paths of what was deleted of `objects`."""
        self.token = None
        """Token that every request must carry, if any."""
        self.faults = []
        """`[method, path, status, times, code]`: answers to give instead, once each; status 0 cuts the connection."""
        self.retry_after = None
        """What such an answer says of when to come back."""
        self.requests = []
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)

    # --- what a test does -------------------------------------------------------------------------------------------

    def fail(self, method, path, status, times=1, code=None):
        """Answer the next requests of a kind with an error; `code` is gRPC's."""
        self.faults.append([method, path, status, times, code])

    def asked(self, method, path):
        """Return how many requests of a kind have come."""
        return sum(one == method and re.search(path, other) is not None for one, other in self.requests)

    def run(self):
        """Return the newest run."""
        return list(self.runs.values())[-1]

    def tasks(self, run):
        """Return the tasks of a run's pipeline."""
        return self._spec(run)["root"]["dag"]["tasks"]

    def pod_stages(self, run):
        """Return the tasks that start a pod, in order."""
        return [name for name in _IN_ORDER if name in self.tasks(run)]

    def parameter(self, run, task, name):
        """Return a parameter of a task as the driver resolves it."""
        value = self.tasks(run)[task]["inputs"]["parameters"][name]["runtimeValue"]["constant"]
        return value.replace("{{$.pipeline_job_uuid}}", run.run_id)

    def finish(self, run, store, folder):
        """Complete a run: publish an artifact for each stage, and read its inputs."""
        for task in self.tasks(run).values():
            for name, value in task["inputs"].get("parameters", {}).items():
                if name.endswith("_known"):
                    reference = Reference.from_json(value["runtimeValue"]["constant"])
                    assert store.find(reference.uri.split("/")[-3], reference.key) == reference
        for name in self.pod_stages(run):
            payload = folder / run.run_id / name
            payload.mkdir(parents=True)
            (payload / "payload.txt").write_text(name)
            key = self.parameter(run, name, "key")
            code_version = self.parameter(run, name, "code_version")
            stage = name.replace("-", "_")
            store.publish(stage, key, payload, config_digest="c", code_version=code_version, inputs={})
            self.detail(run, name, "SUCCEEDED")
            self.pods.append((run.run_id, stage, f"{stage} says hello\n"))
        self._go(run, "SUCCEEDED")

    def detail(self, run, task, state, message=None):
        """Let a task of a run be in a state; the last one of a task counts.

        The API has no message of a task (backend/src/apiserver/server/api_converter.go, toApiPipelineTaskDetail: it fills no `error`).
        The Workflow has one of each node, and v1beta1 shows it (toApiRunDetailV1).
        """
        run.run_details = run.run_details or api.V2beta1RunDetails(task_details=[])
        end = None if state == "RUNNING" else run.created_at + timedelta(seconds=90)
        run.run_details.task_details = [each for each in run.run_details.task_details if each.display_name != task]
        run.run_details.task_details.append(
            api.V2beta1PipelineTaskDetail(
                run_id=run.run_id,
                task_id=uuid.uuid4().hex,
                display_name=task,
                state=state,
                start_time=run.created_at,
                end_time=end,
            )
        )
        if message is not None:
            self.node(run, f"root(0).{task}(0).executor(0)", message)

    def node(self, run, name, message, phase="Failed", kind="Pod"):
        """Let a node of a run's Workflow have failed; its name less that of the Workflow, as in `root(0).sft-warm-start(0).executor(0)`."""
        workflow = self.workflows.setdefault(run.run_id, {"spec": {}, "status": {"nodes": {}}})
        nodes = workflow["status"]["nodes"]
        at = f"2026-01-01T00:00:{len(nodes):02d}Z"
        nodes[f"node-{len(nodes)}"] = {
            "name": f"ngrpo-44gvd(0).{name}",
            "type": kind,
            "phase": phase,
            "message": message,
            "finishedAt": at,
        }

    def end_cancelled(self, run):
        """Let a run that was told to end be over: Kubeflow then says FAILED, as Argo does of the Workflow (ReportWorkflowResource).

        Tasks that were at work have failed, those whose turn never came have no state: seen on KFP 2.17.0.
        """
        assert run.state == "CANCELING"
        self.workflows.setdefault(run.run_id, {"status": {"nodes": {}}})["spec"] = {"activeDeadlineSeconds": 0}
        for name in self.tasks(run):
            known = next((each for each in self.details(run) if each.display_name == name), None)
            if known is None:
                self.detail(run, name, None)
            elif known.state == "RUNNING":
                self.detail(run, name, "FAILED", "Step exceeded its deadline")
        self._go(run, "FAILED")

    def details(self, run):
        return (run.run_details.task_details if run.run_details else None) or []

    def keep_try(self, objects, run, node, outcome, *, error=None, number=1, log="", pod="pod-0"):
        """Let a node of a run have kept a try beside the artifacts."""
        key = self.parameter(run, task_name(node), "key")
        attempt = begin(stage_of(node), key, pipeline_run=run.run_id, pod=pod, number=number, of=3)
        keep(objects, replace(attempt, outcome=outcome, error=error, seconds=12.0), log.encode())
        return attempt

    def submit(self, text):
        """Make a run of a compiled pipeline, as the client does; returns it."""
        documents = list(yaml.safe_load_all(text))
        spec = dict(zip(("pipeline_spec", "platform_spec"), documents, strict=False))
        experiment = (
            self._create_experiment({}, json.dumps({"display_name": "ngrpo"}))
            if not self.experiments
            else self.experiment()
        )
        made = api.V2beta1Run(display_name="a run", experiment_id=experiment.experiment_id, pipeline_spec=spec)
        return self._create_run(made)

    def experiment(self):
        return next(iter(self.experiments.values()))

    def fire(self, schedule):
        """Trigger a schedule; returns the run that it starts, or None.

        A time that passes while the schedule is paused is caught up when it is resumed, even with `no_catchup`: Kubeflow takes the
        last time that is not after now (backend/src/crd/controller/scheduledworkflow/util/cron_schedule.go:112-124), counted from the last
        run or else from the creation of the schedule (scheduled_workflow.go:247).
        """
        going = sum(
            run.recurring_run_id == schedule.recurring_run_id and run.state == "RUNNING" for run in self.runs.values()
        )
        if schedule.status != "ENABLED":
            self.missed.add(schedule.recurring_run_id)
            return None
        if going >= int(schedule.max_concurrency):
            return None
        body = api.V2beta1Run(
            display_name=f"Run of {schedule.display_name}",
            experiment_id=schedule.experiment_id,
            pipeline_version_reference=schedule.pipeline_version_reference,
            recurring_run_id=schedule.recurring_run_id,
        )
        return self._create_run(body)

    # --- the API ----------------------------------------------------------------------------------------------------

    def answer(self, method, path, query, body):
        """Answer a request: the model of the answer."""
        for pattern, verb, function in self._routes():
            match = re.fullmatch(pattern, path)
            if match is not None and verb == method:
                return function(*match.groups(), query, body)
        raise Refused(404, f"no such path: {method} {path}")

    def _routes(self):
        base = "/apis/v2beta1"
        return (
            (f"{base}/healthz", "GET", lambda q, b: api.V2beta1GetHealthzResponse(multi_user=self.multi_user)),
            (
                f"{base}/experiments",
                "GET",
                lambda q, b: self._page(q, self._in_namespace(q, self.experiments), api.V2beta1ListExperimentsResponse),
            ),
            (f"{base}/experiments", "POST", self._create_experiment),
            (
                f"{base}/pipelines",
                "GET",
                lambda q, b: self._page(q, self._in_namespace(q, self.pipelines), api.V2beta1ListPipelinesResponse),
            ),
            (f"{base}/pipelines", "POST", self._create_pipeline),
            (f"{base}/pipelines/upload_version", "POST", self._upload_version),
            (f"{base}/pipelines/([^/]+)/versions", "GET", self._list_versions),
            (f"{base}/pipelines/([^/]+)/versions/([^/]+)", "GET", lambda p, v, q, b: self._one(self.versions, v)),
            (f"{base}/runs", "GET", lambda q, b: self._page(q, self.runs, api.V2beta1ListRunsResponse)),
            (f"{base}/runs", "POST", lambda q, b: self._create_run(typed(b, "V2beta1Run"))),
            (f"{base}/runs/([^/:]+)", "GET", lambda r, q, b: self._one(self.runs, r)),
            ("/apis/v1beta1/runs/([^/:]+)", "GET", self._workflow),
            (f"{base}/runs/([^/:]+):terminate", "POST", self._terminate),
            (f"{base}/recurringruns", "GET", self._list_schedules),
            (f"{base}/recurringruns", "POST", self._create_schedule),
            (f"{base}/recurringruns/([^/:]+)", "GET", lambda r, q, b: self._one(self.schedules, r)),
            (f"{base}/recurringruns/([^/:]+)", "DELETE", self._delete_schedule),
            (f"{base}/recurringruns/([^/:]+):(enable|disable)", "POST", self._switch_schedule),
        )

    def _create_experiment(self, query, body):
        made = self._named(typed(body, "V2beta1Experiment"), self.experiments, "display_name")
        if self.multi_user and not made.namespace:  # server/experiment_server.go:357
            raise Refused(400, "An experiment cannot have an empty namespace in multi-user mode")
        return self._add(self.experiments, made, "experiment_id")

    def _create_pipeline(self, query, body):
        made = self._named(typed(body, "V2beta1Pipeline"), self.pipelines, "name")
        return self._add(self.pipelines, made, "pipeline_id")

    def _named(self, made, where, field):
        """Put an item into its namespace, where no other may have its name (model/pipeline.go and experiment.go: `uniqueIndex`)."""
        made.namespace = (made.namespace or "") if self.multi_user else ""  # resource_manager.go: ReplaceNamespace
        if any(
            (item.namespace, getattr(item, field)) == (made.namespace, getattr(made, field)) for item in where.values()
        ):
            raise Refused(409, f"Already exist error: the name {getattr(made, field)} already exists")
        return made

    def _in_namespace(self, query, where):
        """Return what is in the namespace that a list is asked for; where none is named, what is in none.

        server/pipeline_server.go:430-446 with storage/pipeline_store.go:322-326, and server/experiment_server.go:215-226.
        """
        namespace = query.get("namespace", [""])[0] if self.multi_user else ""
        return {key: item for key, item in where.items() if item.namespace == namespace}

    def _upload_version(self, query, body):
        pipeline = self._one(self.pipelines, query["pipelineid"][0])
        documents = list(yaml.safe_load_all(body))
        spec = dict(zip(("pipeline_spec", "platform_spec"), documents, strict=False))
        made = api.V2beta1PipelineVersion(
            pipeline_id=pipeline.pipeline_id, display_name=query["name"][0], pipeline_spec=parsed(spec)
        )
        same = (pipeline.pipeline_id, made.display_name)  # model/pipeline_version.go: `uniqueIndex`
        if same in [(version.pipeline_id, version.display_name) for version in self.versions.values()]:
            raise Refused(409, f"Already exist error: version {made.display_name}")
        return self._add(self.versions, made, "pipeline_version_id")

    def _list_versions(self, pipeline, query, body):
        own = {key: item for key, item in self.versions.items() if item.pipeline_id == pipeline}
        return self._page(query, own, api.V2beta1ListPipelineVersionsResponse)

    def _create_run(self, run):
        self._one(self.experiments, run.experiment_id)
        if run.pipeline_version_reference is None:
            run.pipeline_spec = parsed(run.pipeline_spec)
        else:
            self._one(self.versions, run.pipeline_version_reference.pipeline_version_id)
        self._go(run, "RUNNING")
        return self._add(self.runs, run, "run_id")

    def _terminate(self, run_id, query, body):
        run = self._one(self.runs, run_id)
        if run.state != "RUNNING":
            raise Refused(400, f"Failed to terminate run {run_id}: it is {run.state}")
        self._go(run, "CANCELING")

    def _go(self, run, state):
        """Let a run be in a state, and remember it (backend/src/apiserver/storage/run_store.go, UpdateRun)."""
        run.state = state
        run.state_history = [*(run.state_history or []), api.V2beta1RuntimeStatus(state=state)]

    def _workflow(self, run_id, query, body):
        """The run as v1beta1 shows it: what there is of it is the Workflow as Argo left it, as text."""
        self._one(self.runs, run_id)
        return {"pipeline_runtime": {"workflow_manifest": json.dumps(self.workflows.get(run_id, {}))}}

    def _create_schedule(self, query, body):
        made = typed(body, "V2beta1RecurringRun")
        self._one(self.versions, made.pipeline_version_reference.pipeline_version_id)
        if len(made.trigger.cron_schedule.cron.split()) != 6:
            raise Refused(400, "Invalid input error: schedule cron is not supported")
        made.status = "ENABLED" if made.mode == "ENABLE" else "DISABLED"
        return self._add(self.schedules, made, "recurring_run_id")

    def _list_schedules(self, query, body):
        return self._page(query, self.schedules, api.V2beta1ListRecurringRunsResponse)

    def _delete_schedule(self, schedule, query, body):
        self._one(self.schedules, schedule)
        del self.schedules[schedule]
        # Workflows belong to their schedule (resource_manager.go: SetOwnerReferences): Kubernetes deletes them with it unless told not to.
        if query.get("propagation_policy") != ["ORPHAN"]:
            self.deleted_workflows += [
                run.run_id
                for run in self.runs.values()
                if run.recurring_run_id == schedule and run.state not in ("SUCCEEDED", "FAILED", "CANCELED")
            ]

    def _switch_schedule(self, schedule, how, query, body):
        found = self._one(self.schedules, schedule)
        found.status = how.upper() + "D"
        if how == "enable" and schedule in self.missed:
            self.missed.remove(schedule)
            self.fire(found)

    def _add(self, where, item, id_field):
        key = str(uuid.uuid4())
        self._clock += timedelta(minutes=1)
        setattr(item, id_field, key)
        item.created_at = self._clock
        where[key] = item
        return item

    def _one(self, where, key):
        if key not in where:
            raise Refused(404, f"{key} not found")
        return where[key]

    def _page(self, query, where, answer):
        items = list(where.values())
        for predicate in json.loads(query.get("filter", ["{}"])[0]).get("predicates", ()):
            value = predicate["stringValue"]
            if predicate["operation"] == "IS_SUBSTRING":
                items = [item for item in items if value in getattr(item, predicate["key"])]
            else:
                assert predicate["operation"] in ("EQUALS", 1)
                items = [item for item in items if getattr(item, predicate["key"]) == value]
        if "experiment_id" in query:
            items = [item for item in items if item.experiment_id == query["experiment_id"][0]]
        if query.get("sort_by") == ["created_at desc"]:
            items.reverse()
        start = int((query.get("page_token") or ["0"])[0])
        end = start + min(int((query.get("page_size") or ["20"])[0]), 3)  # small, so that pages are turned
        (field,) = [name for name, kind in answer.openapi_types.items() if kind.startswith("list[")]
        return answer(**{field: items[start:end] or None, "next_page_token": str(end) if end < len(items) else None})

    def _spec(self, run):
        spec = run.pipeline_spec
        if spec is None:
            spec = self.versions[run.pipeline_version_reference.pipeline_version_id].pipeline_spec
        return spec.get("pipeline_spec", spec)

    # --- Kubernetes -------------------------------------------------------------------------------------------------

    def kubernetes(self, method, path, query):
        """Answer a request to Kubernetes: text, or an object."""
        if method == "DELETE":
            if path not in self.objects:
                raise Refused(404, f"{path} not found")
            del self.objects[path]
            self.deleted.append(path)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        if path in self.objects:
            return self.objects[path]
        kind, _, name = path.rpartition("/")
        if kind.endswith("/secrets") and name in self.secrets:
            return {"kind": "Secret", "apiVersion": "v1", "data": dict.fromkeys(self.secrets[name], "aGlkZGVu")}
        if path.endswith("/log"):
            number = int(path.split("/")[-2].removeprefix("pod-"))
            assert query["container"] == ["main"]
            return self.pods[number][2]
        if not path.endswith("/pods"):
            raise Refused(404, f"{path} not found")
        wanted = [item.partition("=")[::2] for item in query["labelSelector"][0].split(",")]
        found = [self._pod(number, *pod) for number, pod in enumerate(self.pods)]
        found = [
            pod
            for pod in found
            if all(
                name in pod["metadata"]["labels"] and value in ("", pod["metadata"]["labels"][name])
                for name, value in wanted
            )
        ]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found}

    def _pod(self, number, run, stage, log):
        made = self._clock + timedelta(minutes=number)
        return {
            "metadata": {
                "name": f"pod-{number}",
                "uid": f"uid-{number}",
                "labels": self.pod_labels.get(number, {"pipeline/runid": run}) | {"ngrpo/stage": stage},
                "creationTimestamp": made.isoformat(),
            },
            "status": self.pod_statuses.get(number, self.pod_status),
        }


def cluster(namespace="kubeflow"):
    """What the example settings (`pipelines/cluster.example.toml`) need of a cluster, by path."""
    kueue, own = "/apis/kueue.x-k8s.io/v1beta2", f"/api/v1/namespaces/{namespace}"
    quota = {"cpu": "192", "memory": "2Ti", "nvidia.com/gpu": "16"}
    resources = [{"name": name, "nominalQuota": amount} for name, amount in quota.items()]
    return {
        own: {"metadata": {"name": namespace, "labels": {}}},
        f"{own}/serviceaccounts/ngrpo-stage": {"metadata": {"name": "ngrpo-stage"}},
        f"{own}/secrets/registry": {"data": {".dockerconfigjson": "aGlkZGVu"}},
        f"{own}/resourcequotas": {"items": []},
        f"{own}/limitranges": {"items": []},
        "/api/v1/nodes": {"items": [gpu_node(), gpu_node()]},
        kueue: {"kind": "APIResourceList"},
        f"{kueue}/namespaces/{namespace}/localqueues/ngrpo": {"spec": {"clusterQueue": "ngrpo"}},
        f"{kueue}/clusterqueues/ngrpo": {
            "spec": {
                "resourceGroups": [
                    {"coveredResources": list(quota), "flavors": [{"name": "any", "resources": resources}]}
                ]
            }
        },
        f"{kueue}/workloadpriorityclasses/training": {"value": 1000},
        f"{kueue}/namespaces/{namespace}/workloads": {"items": []},
    }


def gpu_node(product="NVIDIA-H100-80GB-HBM3", gpus=8, mib=81559):
    """A node with GPUs, as NVIDIA's feature discovery labels it."""
    labels = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": str(mib)}
    return {"metadata": {"labels": labels}, "status": {"allocatable": {"cpu": "96", "nvidia.com/gpu": str(gpus)}}}


def typed(body, model):
    """Read a body as a type of the API; a field that it does not have is an error."""
    tree = json.loads(body)
    unknown = set(tree) - set(getattr(api, model).attribute_map.values())
    if unknown:
        raise Refused(400, f"unknown field {sorted(unknown)} of {model}")
    return _SERIALIZER.deserialize(SimpleNamespace(data=body), model)


def parsed(documents):
    """Read a pipeline as the API's backend does: an unknown field is an error."""
    json_format.ParseDict(documents["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(documents.get("platform_spec", {}), pipeline_spec_pb2.PlatformSpec())
    return documents


@contextmanager
def serve():
    """Serve the API; yields its state, with `address`."""
    state = Kubeflow()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = (
            True  # or each answer takes 40 ms: its second packet waits for the receipt of the first
        )

        def handle_one(self):
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append((self.command, parts.path))
            for fault in state.faults:
                if fault[3] and fault[0] == self.command and re.search(fault[1], parts.path):
                    fault[3] -= 1
                    if fault[2] == 0:
                        self.close_connection = True
                        return
                    told = {"message": f"it fails with {fault[2]}", "code": fault[4]}
                    self.send(fault[2], json.dumps(told), state.retry_after)
                    return
            if not parts.path.startswith(("/apis/v2beta1/", "/apis/v1beta1/")):
                try:
                    told = state.kubernetes(self.command, parts.path, query)
                    self.send(200, told if isinstance(told, str) else json.dumps(told))
                except Refused as refusal:
                    self.send(refusal.status, json.dumps({"message": str(refusal)}))
                return
            if state.token is not None and self.headers.get("Authorization") != f"Bearer {state.token}":
                self.send(401, json.dumps({"message": "Request header error: there is no user identity header"}))
                return
            if self.headers.get("Content-Type", "").startswith("multipart/"):
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                body = message_from_bytes(head + body).get_payload()[0].get_payload(decode=True)
            try:
                answer = state.answer(self.command, parts.path, query, body)
                self.send(200, json.dumps(_SERIALIZER.sanitize_for_serialization(answer) or {}))
            except Refused as refusal:
                self.send(refusal.status, json.dumps({"message": str(refusal)}))

        do_GET = do_POST = do_DELETE = handle_one

        def date_time_string(self, timestamp=None):
            return super().date_time_string(time.time() + state.clock_ahead.total_seconds())

        def send(self, status, text, retry_after=None):
            data = text.encode()
            self.send_response(status)
            if retry_after is not None:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
