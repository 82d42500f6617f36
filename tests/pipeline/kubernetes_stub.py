"""A Kubernetes API with objects by path, pods that a test controls, and the health endpoint of Kubeflow Pipelines, on loopback."""

import json
import re
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import kubeflow_stub
import yaml

NAMESPACE = "kubeflow"
ARGO_CONFIG = "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"
KUEUE_CONFIG = "/api/v1/namespaces/kueue-system/configmaps/kueue-manager-config"
DEPLOYMENTS = "/apis/apps/v1/deployments"
OWN = f"/api/v1/namespaces/{NAMESPACE}"
PODS = f"{OWN}/pods"
# As Kubeflow Pipelines 2.17.0 ships it.
WORKFLOW_DEFAULTS = {
    "spec": {
        "ttlStrategy": {"secondsAfterCompletion": 3600},
        "templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}},
    }
}
IMAGES = {
    ("kubeflow", "ml-pipeline"): "ghcr.io/kubeflow/kfp-api-server:2.17.0",
    ("kubeflow", "workflow-controller"): "quay.io/argoproj/workflow-controller:v4.0.5",
    ("kueue-system", "kueue-controller-manager"): "registry.k8s.io/kueue/kueue:v0.19.2",
    ("kubeflow-system", "kubeflow-trainer-controller-manager"): "ghcr.io/kubeflow/trainer/trainer-controller-manager:v2.3.0",
    ("jobset-system", "jobset-controller-manager"): "registry.k8s.io/jobset/jobset:v0.12.0",
}  # fmt: skip


class Kubernetes:
    """The state of the cluster, with methods for tests to change it."""

    def __init__(self):
        trainer = "/apis/trainer.kubeflow.org/v1alpha1"
        self.objects = kubeflow_stub.cluster(NAMESPACE)
        self.objects[OWN] = {
            "metadata": {"name": NAMESPACE, "labels": {"kubernetes.io/metadata.name": NAMESPACE}},
            "status": {"phase": "Active"},
        }
        for name, keys in {
            "ngrpo-object-store": ("access-key", "secret-key"),
            "ngrpo-hub": ("token",),
            "ngrpo-training-token": ("ca.crt", "namespace", "token"),
        }.items():
            self.objects[f"{OWN}/secrets/{name}"] = {"data": dict.fromkeys(keys, "aGlkZGVu")}
        self.objects |= {
            "/version": {"gitVersion": "v1.34.4"},
            trainer: {"kind": "APIResourceList"},
            f"{trainer}/namespaces/{NAMESPACE}/trainingruntimes/ngrpo-training": {"spec": {}},
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainjobs.trainer.kubeflow.org": {
                "spec": {
                    "versions": [
                        {
                            "schema": {
                                "openAPIV3Schema": {"properties": {"spec": {"properties": {"runtimePatches": {}}}}}
                            }
                        }
                    ]
                }
            },
        }
        self.cluster_queue["metadata"] = {"name": "ngrpo"}
        self.cluster_queue["spec"]["namespaceSelector"] = {}
        self.objects["/apis/kueue.x-k8s.io/v1beta2/namespaces/kubeflow/localqueues/ngrpo"]["metadata"] = {
            "name": "ngrpo"
        }
        self.set_images(IMAGES)
        self.set_argo(WORKFLOW_DEFAULTS)
        self.set_kueue({"integrations": {"frameworks": ["batch/job", "pod", "trainer.kubeflow.org/trainjob"]}})
        self.multi_user = False
        self.clock = timedelta(0)
        """By how much its clock is ahead."""
        self.denied = set()
        """`verb resource` that the account may not."""
        self.faults = []
        """`(method, pattern of the path, status, message)`: answers to give instead, always."""
        self.pods = {}
        self.made = []
        """All pods that were made."""
        self.pod_status = {"phase": "Succeeded"}
        self.pod_log = ""
        self.requests = []

    @property
    def cluster_queue(self):
        return self.objects["/apis/kueue.x-k8s.io/v1beta2/clusterqueues/ngrpo"]

    def set_images(self, images):
        """Let programs be installed, by namespace and name of their deployment."""
        deployments = [
            {
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
            }
            for (namespace, name), image in images.items()
        ]
        self.objects[DEPLOYMENTS] = {"items": deployments}
        for item in deployments:
            where = item["metadata"]
            self.objects[f"/apis/apps/v1/namespaces/{where['namespace']}/deployments/{where['name']}"] = item

    def set_argo(self, defaults):
        """Set Argo's defaults of workflows."""
        self.objects[ARGO_CONFIG] = {"data": {"workflowDefaults": yaml.safe_dump(defaults)}}

    def set_kueue(self, settings):
        """Set Kueue's configuration."""
        self.objects[KUEUE_CONFIG] = {"data": {"controller_manager_config.yaml": yaml.safe_dump(settings)}}

    def asked(self, method, path):
        """Return how many requests of a kind have come."""
        return sum(one == method and re.search(path, other) is not None for one, other in self.requests)

    def answer(self, method, path, body):
        """Return status and answer: an object, or text."""
        for verb, pattern, status, message in self.faults:
            if verb == method and re.search(pattern, path):
                return status, {"kind": "Status", "message": message}
        if path == "/apis/v2beta1/healthz":
            return 200, {"multi_user": self.multi_user}
        if path.endswith("/selfsubjectaccessreviews"):
            asked = json.loads(body)["spec"]["resourceAttributes"]
            right = f"{asked['verb']} {asked['resource']}" + (
                f"/{asked['subresource']}" if asked["subresource"] else ""
            )
            return 201, {"status": {"allowed": right not in self.denied}}
        if path == PODS and method == "POST":
            pod = json.loads(body)
            self.pods[pod["metadata"]["name"]] = pod
            self.made.append(pod)
            return 201, pod
        if path.startswith(f"{PODS}/"):
            return self._pod(method, *path.removeprefix(f"{PODS}/").partition("/")[::2])
        if method == "GET" and path in self.objects:
            return 200, self.objects[path]
        return 404, {"kind": "Status", "message": f"{path} not found"}

    def _pod(self, method, name, part):
        if name not in self.pods:
            return 404, {"kind": "Status", "message": f'pods "{name}" not found'}
        if method == "DELETE":
            return 200, self.pods.pop(name)
        return 200, self.pod_log if part == "log" else self.pods[name] | {"status": self.pod_status}


@contextmanager
def serve():
    """Serve the cluster; yields its state, with `address`."""
    state = Kubernetes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self):
            path = urlsplit(self.path).path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append((self.command, path))
            status, told = state.answer(self.command, path, body)
            data = (told if isinstance(told, str) else json.dumps(told)).encode()
            self.send_response_only(status)
            self.send_header("Date", format_datetime(datetime.now(UTC) + state.clock, usegmt=True))
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_one

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
