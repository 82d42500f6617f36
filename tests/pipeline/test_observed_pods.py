"""What a pipeline requests so that a run can be monitored and accounted for: ports, annotations, prices, and records of pods."""

import re

import pytest
import yaml
from golden_ir import WHOLE, compiled
from test_compile import executor, pod, task
from test_manifests import K8S
from test_train_job import TASK, settings

from ngrpo.config import RegisteredModel, load_config
from ngrpo.config.costs import CostsConfig
from ngrpo.environment import METRICS_HOST, METRICS_PORT, PRICES
from ngrpo.ledger.spending import Spent, keep
from ngrpo_kfp.components.launching.train_job_manifest import manifest
from ngrpo_kfp.components.serving.inference_service import inference_service
from ngrpo_kfp.pipelines.cli.options import PRESETS

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

TRAININGS = ("sft_warm_start", "ngrpo_training")


def variables(spec, stage) -> dict[str, str]:
    return {each["name"]: each["value"] for each in executor(spec, stage)["env"]}


def test_pods_that_train_can_be_scraped_where_the_cluster_opens_a_port_and_no_other():
    spec, platform = compiled(WHOLE, "cluster.metrics_port=9400")
    for stage in TRAININGS:
        assert variables(spec, stage)[METRICS_PORT] == "9400"
        fields = {each["name"]: each["fieldPath"] for each in pod(platform, stage)["fieldPathAsEnv"]}
        assert fields[METRICS_HOST] == "status.podIP"
        annotations = pod(platform, stage)["podMetadata"]["annotations"]
        assert annotations["prometheus.io/port"] == "9400"
        assert annotations["prometheus.io/scrape"] == "true"
    assert METRICS_PORT not in variables(spec, "prepare_data")
    assert "annotations" not in pod(platform, "prepare_data")["podMetadata"]


def test_prices_reach_the_pods_and_no_key():
    plain, _ = compiled(WHOLE)
    priced, _ = compiled(WHOLE, "costs.gpu_hour=2.5")
    for stage in ("ngrpo_training", "model_promotion"):
        assert PRICES not in variables(plain, stage)
        assert CostsConfig.model_validate_json(variables(priced, stage)[PRICES]).gpu_hour == 2.5
    keys = [task(spec, "ngrpo_training")["inputs"]["parameters"]["key"] for spec in (plain, priced)]
    assert keys[0] == keys[1]


def test_nodes_of_a_job_can_be_scraped_and_know_the_prices(monkeypatch):
    monkeypatch.setenv(PRICES, '{"gpu_hour":2.5}')
    job = manifest("n", TASK, settings(metrics_port=9400))
    given = {each["name"]: each for each in job["spec"]["trainer"]["env"]}
    assert given[METRICS_PORT]["value"] == "9400"
    assert given[METRICS_HOST]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert given[PRICES]["value"] == '{"gpu_hour":2.5}'
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    metadata = replicated["template"]["spec"]["template"]["metadata"]
    assert metadata["annotations"]["prometheus.io/port"] == "9400"
    closed = manifest("n", TASK, settings())
    assert METRICS_PORT not in {each["name"] for each in closed["spec"]["trainer"]["env"]}
    assert "annotations" not in str(closed["spec"]["runtimePatches"])


def test_the_component_for_prometheus_finds_the_pods_by_their_label_and_keeps_the_container_of_the_stage():
    folder = K8S / "components" / "monitoring"
    policy, monitor = (
        yaml.safe_load((folder / name).read_text()) for name in ("metrics-access.yaml", "pod-monitor.yaml")
    )
    assert policy["spec"]["podSelector"] == monitor["spec"]["selector"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    kept = {str(rule["sourceLabels"]): rule["regex"] for rule in endpoint["relabelings"] if rule["action"] == "keep"}
    assert kept["['__meta_kubernetes_pod_container_name']"] == "main|node"


def scraped(monitor: dict, labels: dict[str, str]) -> dict[str, str] | None:
    """Return what a monitor makes of a target's labels, None if it drops the target (`relabel_config` of Prometheus)."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for rule in endpoint["relabelings"]:
        value = ";".join(labels.get(name, "") for name in rule["sourceLabels"])
        if rule["action"] == "keep" and re.fullmatch(rule["regex"], value) is None:
            return None
        if rule["action"] == "replace" and "regex" not in rule:
            labels = labels | {rule["targetLabel"]: value}
    return labels


def test_the_component_for_prometheus_scrapes_the_server_of_our_services_and_nothing_else_in_their_pods():
    monitor = yaml.safe_load((K8S / "components" / "monitoring" / "served-pod-monitor.yaml").read_text())
    stored = RegisteredModel(kind="registered", name="ngrpo", version=3, id="s3://bucket/model", digest="d" * 64)
    config = load_config(
        PRESETS / "tiny.toml", [f"resources.benchmark_evaluation.{each}" for each in ("gpus=1", "memory_gib=64")]
    )
    service = inference_service(stored, config, "image", namespace="n", positions=None)
    (container,) = service["spec"]["predictor"]["containers"]
    (port,) = container["ports"]
    (selected,) = monitor["spec"]["selector"]["matchExpressions"]
    assert selected["operator"] == "Exists"

    def meta(kind: str, name: str) -> str:
        return f"__meta_kubernetes_pod_{kind}_{re.sub('[^a-zA-Z0-9_]', '_', name)}"

    # As KServe makes the pod: the label that is selected by, and the annotations of the service.
    pod = {meta("label", selected["key"]): service["metadata"]["name"]}
    for name, value in service["metadata"]["annotations"].items():
        pod |= {meta("annotation", name): value, meta("annotationpresent", name): "true"}

    def target(name: str, number: int) -> dict[str, str]:
        return {
            "__meta_kubernetes_pod_container_name": name,
            "__meta_kubernetes_pod_container_port_number": str(number),
        }

    server = target(container["name"], port["containerPort"])
    found = scraped(monitor, pod | server)
    assert found is not None
    assert (found["inferenceservice"], found["model_version"]) == ("ngrpo", "ngrpo/3")
    assert scraped(monitor, pod | target("queue-proxy", 8012)) is None
    assert scraped(monitor, {meta("label", selected["key"]): "of-another-team"} | server) is None


def record(run, key: str, minute: int, **fields) -> Spent:
    began = f"2026-11-29T12:{minute:02}:00+00:00"
    name = f"20261129T12{minute:02}00Z-pod.{minute}"
    return Spent("prepare_data", key, name, run, "s", "8 x GPU", began, **fields)


def test_status_tells_what_the_pods_of_a_run_have_taken(kubeflow, ngrpo, objects):
    ngrpo("submit")
    run = kubeflow.run()
    key = kubeflow.parameter(run, "prepare-data", "key")
    killed = record(run.run_id, key, 0, seconds=1800, gpus=8, joules=3.6e6, processor_seconds=3600, outcome="failed")
    done = record(run.run_id, key, 40, seconds=1800, gpus=8, joules=3.6e6, processor_seconds=3600, outcome="published")
    other = record("another", key, 50, seconds=9999, gpus=8)
    for each in (killed, done, other):
        keep(objects, each)
    told = ngrpo("status")
    assert "cost prepare_data: 60.0 min, 2 processor-hours, 8 GPU-hours, 2 kWh in 2 tries" in " ".join(told.split())
