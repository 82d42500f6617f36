"""Compiling for a cluster: golden pipelines, what each pod gets, and the errors."""

import json

import pytest
from golden_ir import CLUSTER, IMAGES, NAMES, WHOLE, compiled, golden_path, golden_text

from ngrpo.config import RunConfig, load_config, validate
from ngrpo.errors import ConfigError
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_pipeline, load_ir
from ngrpo_kfp.pipelines.kubeflow.graph_check import GraphError
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan

LOCK = golden_path(WHOLE).with_name("images.lock")


def executor(spec, stage):
    return spec["deploymentSpec"]["executors"][f"exec-{stage.replace('_', '-')}"]["container"]


def pod(platform, stage):
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{stage.replace('_', '-')}"]


def task(spec, stage):
    return spec["root"]["dag"]["tasks"][stage.replace("_", "-")]


@pytest.fixture(scope="module")
def paper():
    return compiled(WHOLE)


@pytest.mark.parametrize("preset", NAMES)
def test_the_pipeline_of_a_preset_is_the_golden_one(preset):
    assert golden_text(preset) == golden_path(preset).read_text(), (
        "if that is meant: make golden, and read the difference"
    )


def test_a_stage_with_gpus_gets_them_and_what_they_need(paper):
    spec, platform = paper
    training = executor(spec, "ngrpo_training")
    assert training["image"].startswith("registry.example/ngrpo-gpu@sha256:")
    resources = training["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "8"
    for amount, value in (("Cpu", "64"), ("Memory", "512Gi")):
        assert resources[f"resource{amount}Request"] == resources[f"resource{amount}Limit"] == value
    placed = pod(platform, "ngrpo_training")
    assert {"mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "64Gi", "volumeName": "shared-memory"} in placed[
        "emptyDirMounts"
    ]
    assert placed["nodeSelector"] == {"labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}
    assert placed["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_stage_without_gpus_is_kept_off_the_nodes_that_have_them(paper):
    spec, platform = paper
    assert executor(spec, "prepare_data")["image"].startswith("registry.example/ngrpo-cpu@sha256:")
    assert "accelerator" not in executor(spec, "prepare_data")["resources"]
    placed = pod(platform, "prepare_data")
    assert not {"nodeSelector", "tolerations"} & set(placed)
    assert [mount["mountPath"] for mount in placed["emptyDirMounts"]] == ["/scratch"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_pod_is_queued_limited_and_not_root_and_knows_where_things_are(paper, stage):
    spec, platform = paper
    placed = pod(platform, stage)
    assert placed["podMetadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "ngrpo",
        "kueue.x-k8s.io/priority-class": "training",
        "ngrpo/stage": stage,
    }
    assert placed["activeDeadlineSeconds"] == str(3600 * (168 if stage == "ngrpo_training" else 24))
    assert placed["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
    assert placed["imagePullPolicy"] == "IfNotPresent"
    assert [secret["secretName"] for secret in placed["imagePullSecret"]] == ["registry"]
    secrets = {secret["secretName"]: secret for secret in placed["secretAsEnv"]}
    assert secrets["ngrpo-object-store"]["keyToEnv"] == [
        {"envVar": "NGRPO_S3_ACCESS_KEY_ID", "secretKey": "access-key"},
        {"envVar": "NGRPO_S3_SECRET_ACCESS_KEY", "secretKey": "secret-key"},
    ]
    assert not any(secret["optional"] for secret in secrets.values())
    environment = {item["name"]: item["value"] for item in executor(spec, stage)["env"]}
    assert environment["NGRPO_STORE"] == "s3://ngrpo/artifacts"
    assert environment["NGRPO_S3_ENDPOINT_URL"] == "https://s3.example.com"
    assert not any(name.startswith("AWS_") for name in environment), "Kubeflow's launcher would take them"
    assert environment["NGRPO_SAVE_MINUTES"] == "10.0"
    assert "pip install" not in str(executor(spec, stage)["command"])


def test_labels_of_pods_are_added_to_ours():
    _, platform = compiled(WHOLE, 'cluster.labels={"access-ml-pipeline": "true"}')
    labels = pod(platform, "ngrpo_training")["podMetadata"]["labels"]
    assert labels["access-ml-pipeline"] == "true"
    assert labels["ngrpo/stage"] == "ngrpo_training"


@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_is_tried_again_in_the_pod_and_a_lost_pod_by_the_orchestrator(paper, stage):
    spec, _ = paper
    environment = {item["name"]: item["value"] for item in executor(spec, stage)["env"]}
    assert json.loads(environment["NGRPO_TRIES"]) == {"times": 3, "backoff_seconds": 60, "backoff_factor": 2}
    year = 365 * 24 * 3600
    assert task(spec, stage)["retryPolicy"] == {
        "maxRetryCount": 5,
        "backoffDuration": "10s",
        "backoffFactor": 1.0,
        "backoffMaxDuration": f"{year}s",
    }


def test_lost_pods_need_not_be_replaced():
    spec, _ = compiled(WHOLE, "cluster.retry.lost_pods=0")
    policy = task(spec, "ngrpo_training")["retryPolicy"]
    assert "maxRetryCount" not in policy, "0 is left out; without a policy Argo's default would hold, which is 2"
    assert policy["backoffDuration"] == "10s"


def test_certificates_come_from_a_config_map():
    spec, platform = compiled(WHOLE, "cluster.certificate_authority=authorities")
    for stage in STAGES:
        (mounted,) = pod(platform, stage)["configMapAsVolume"]
        assert mounted["configMapName"] == "authorities"
        assert mounted["mountPath"] == "/var/run/ngrpo/certificates"
        environment = {item["name"]: item["value"] for item in executor(spec, stage)["env"]}
        assert environment["NGRPO_S3_CA_BUNDLE"] == "/var/run/ngrpo/certificates/ca.crt"


def test_the_smallest_preset_fits_into_the_cluster_of_a_laptop():
    spec, _ = compiled("tiny")
    for stage in STAGES:
        resources = executor(spec, stage)["resources"]
        assert (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]) == ("1", "2Gi")


def test_kubeflow_may_answer_for_every_stage_but_the_promotion_whose_key_is_that_of_the_run(paper):
    spec, _ = paper
    cached = {stage for stage in STAGES if task(spec, stage)["cachingOptions"].get("enableCache")}
    assert cached == set(STAGES) - {"model_promotion"}
    key = task(spec, "model_promotion")["inputs"]["parameters"]["key"]["runtimeValue"]["constant"]
    assert key == "{{$.pipeline_job_uuid}}"


class Store:
    """A store that has the results of some stages."""

    def __init__(self, *stages):
        self.stages = stages

    def find(self, stage, key):
        return Reference(uri=f"s3://b/{stage}/{key}/", key=key, digest="d" * 64) if stage in self.stages else None

    def verify(self, reference):
        return []


def planned(*stages, overrides=()):
    config = load_config(PRESETS / "tiny.toml", overrides)
    plan = make_plan(config, run="r", store=Store(*stages), rerun_tokens={}, history=History())
    return config, plan, load_ir(compile_pipeline(config, plan, IMAGES, caching=False))[0]


def test_what_is_in_the_store_is_told_to_who_reads_it_and_has_no_pod():
    """Seen on a cluster: KFP's launcher opens the bucket of an imported artifact without its address, and the reader fails."""
    _, plan, spec = planned("prepare_data", "neighbor_index", "sft_warm_start")
    assert set(spec["root"]["dag"]["tasks"]) == {"ngrpo-training", "benchmark-evaluation", "model-promotion"}
    assert {name for name, item in spec["deploymentSpec"]["executors"].items() if "container" in item} == {
        "exec-benchmark-evaluation",
        "exec-model-promotion",
        "exec-ngrpo-training",
    }
    given = task(spec, "ngrpo_training")["inputs"]
    assert "artifacts" not in given
    sources = {"dataset": "prepare_data", "neighbor_index": "neighbor_index", "warm_start": "sft_warm_start"}
    for name, source in sources.items():
        known = given["parameters"][f"{name}_known"]["runtimeValue"]["constant"]
        assert Reference.from_json(known) == plan[source].reference
    read = task(spec, "benchmark_evaluation")["inputs"]
    assert set(read["artifacts"]) == {"trained"}
    assert {name for name in read["parameters"] if name.endswith("_known")} == {"dataset_known", "warm_start_known"}


def test_a_planned_run_does_not_ask_the_cache_of_kubeflow():
    _, _, spec = planned()
    assert not any(task["cachingOptions"].get("enableCache") for task in spec["root"]["dag"]["tasks"].values())


def test_the_pipeline_holds_the_configuration_that_it_was_made_from():
    config, _, spec = planned(overrides=["seed=3"])
    assert validate(RunConfig, json.loads(spec["pipelineInfo"]["description"])) == config


def test_texts_of_settings_hold_nothing_that_argo_or_kubeflow_would_fill_in(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "def f(completions, **kwargs): return f'{{ {{{kwargs}}} }} {{workflow.name}} {{$.inputs}}'"
    )
    (tmp_path / "mine.toml").write_text(
        f"{(PRESETS / 'tiny.toml').read_text()}\n[training.rewards.mine]\nfunction = 'rewards.py:f'"
    )
    config = load_config(tmp_path / "mine.toml")
    plan = make_plan(config, run="", store=None, rerun_tokens={}, history=History())
    spec, _ = load_ir(compile_pipeline(config, plan, Images(LOCK), caching=False))
    training = task(spec, "ngrpo_training")["inputs"]["parameters"]["config"]["runtimeValue"]["constant"]
    assert "{{" not in training
    assert json.loads(training)["training"]["rewards"]["mine"]["code"] == config.training.rewards["mine"].code
    assert "{{" not in spec["pipelineInfo"]["description"]
    assert validate(RunConfig, json.loads(spec["pipelineInfo"]["description"])) == config


# --- errors -----------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert cli.main(["compile", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


DEPLOYED = ["deployment.after_promotion=true", "deployment.token=ngrpo-deployment-token"]


def test_a_run_that_deploys_has_a_stage_more_after_its_promotion():
    spec, platform = compiled(WHOLE, *DEPLOYED)
    deploy = task(spec, "deploy")
    assert "model-promotion" in deploy["dependentTasks"]
    assert "enableCache" not in deploy["cachingOptions"]
    assert executor(spec, "deploy")["image"].startswith("registry.example/ngrpo-cpu@sha256:"), (
        "GPUs are those of the service"
    )
    (mount,) = pod(platform, "deploy")["secretAsVolume"]
    assert (mount["secretName"], mount["mountPath"]) == ("ngrpo-deployment-token", "/var/run/secrets/ngrpo-deployment")
    others = [stage for stage in STAGES if "secretAsVolume" in pod(platform, stage)]
    assert others == [stage for stage in STAGES if "secretAsVolume" in pod(compiled(WHOLE)[1], stage)], (
        "in no other pod"
    )
    given = {one["name"]: one["value"] for one in executor(spec, "deploy")["env"]}
    assert json.loads(given["NGRPO_IMAGES"])["benchmark_evaluation"].startswith("registry.example/ngrpo-gpu@sha256:")


def test_a_model_that_cannot_be_served_is_refused_before_it_is_trained():
    with pytest.raises(ConfigError, match=r"resources\.benchmark_evaluation\.gpus=0: a model is served by the image"):
        compiled(WHOLE, *DEPLOYED, "resources.benchmark_evaluation.gpus=0", "evaluation.engine=transformers")
    with pytest.raises(ConfigError, match=r"deployment\.after_promotion=true with evaluation\.mixing"):
        compiled(WHOLE, *DEPLOYED, 'evaluation.mixing={"strategy": "token"}')


def test_a_run_on_one_machine_deploys_nothing(capsys):
    assert cli.main(["run", "--dry-run", "--set", DEPLOYED[0]]) == 2
    said = capsys.readouterr().err
    assert "deployment.after_promotion=true: a run on this machine has no cluster to deploy on" in " ".join(
        said.split()
    )


def test_compile_writes_a_file(tmp_path, capsys):
    path = tmp_path / "out.yaml"
    assert cli.main(["compile", "--images", str(LOCK), "-o", str(path)]) == 0
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    spec, platform = load_ir(path.read_text())
    assert set(spec["root"]["dag"]["tasks"]) == {stage.replace("_", "-") for stage in STAGES}
    assert "podMetadata" in pod(platform, "prepare_data")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("resources.ngrpo_training.gpus=16", "resources.ngrpo_training.gpus=16 exceeds cluster.gpu.per_pod=8"),
        ("resources.ngrpo_training.gpu_memory_gib=141", "gpu_memory_gib=141 exceeds cluster.gpu.memory_gib=80"),
        ("resources.prepare_data.cpus=65", "resources.prepare_data.cpus=65 exceeds cluster.cpus_per_pod=64"),
        ("resources.prepare_data.memory_gib=513", "memory_gib=513 exceeds cluster.memory_gib_per_pod=512"),
        ("cluster.gpu.shared_memory_gib=512", "shared_memory_gib=512 is taken from resources.ngrpo_training"),
    ],
)
def test_a_preset_that_asks_for_more_than_the_cluster_gives_is_refused(capsys, override, named):
    line = refused(capsys, "--preset", "paper-7b", "--cluster", str(CLUSTER), "--images", str(LOCK), "--set", override)
    assert named in line


@pytest.mark.parametrize(
    "address",
    ["registry.example/ngrpo-cpu:1.0", "registry.example/ngrpo-cpu", f"registry.example/x@sha256:{'c' * 63}"],
)
def test_an_image_that_is_not_named_by_its_digest_is_refused(capsys, tmp_path, address):
    lock = tmp_path / "images.lock"
    lock.write_text(f'cpu = "{address}"')
    line = refused(capsys, "--images", str(lock))
    assert f"cpu = '{address}' is not a digest" in line
    assert "write repository@sha256:" in line


def test_what_is_compiled_is_checked(monkeypatch):
    monkeypatch.setattr(Images, "reference", lambda self, name: "ngrpo:latest")
    with pytest.raises(GraphError, match=r"exec-prepare-data: image 'ngrpo:latest' is not named by its digest"):
        compiled("tiny")


def test_an_image_that_the_lock_does_not_have_is_named(capsys, tmp_path):
    lock = tmp_path / "images.lock"
    lock.write_text(f'gpu = "{Images(LOCK).reference("gpu")}"')
    with pytest.raises(ConfigError, match=r"image 'cpu' is not in .* \(it has: gpu\): build it"):
        Images(lock).reference("cpu")
    assert "no such file" in refused(capsys, "--images", str(tmp_path / "none.lock"))


@pytest.mark.parametrize("lock", [None, "other = 'registry.example/x@sha256:0'"])
def test_a_pipeline_can_be_looked_at_before_there_are_images(capsys, monkeypatch, tmp_path, lock):
    monkeypatch.chdir(tmp_path)
    if lock is not None:
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "images.lock").write_text(lock)
    assert cli.main(["compile", "--preset", "paper-7b", "-o", "out.yaml"]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert "images/images.lock lacks cpu and gpu" in line
    assert "no cluster can pull" in line
    spec, _ = load_ir((tmp_path / "out.yaml").read_text())
    assert executor(spec, "ngrpo_training")["image"] == f"ngrpo-gpu@sha256:{'0' * 64}"


@pytest.mark.parametrize("command", [["submit"], ["schedule", "create", "daily", "--cron", "0 0 3 * * *"]])
def test_a_run_needs_images(capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'images/images.lock': no such file" in line


def test_a_cluster_file_that_is_missing_is_named(capsys, tmp_path):
    assert "cluster" in refused(capsys, "--images", str(LOCK), "--cluster", str(tmp_path / "none.toml"))


def test_configurations_differ_in_nothing_but_the_cluster_when_one_is_named():
    plain = load_config(PRESETS / "tiny.toml")
    placed = load_config(PRESETS / "tiny.toml", cluster=CLUSTER)
    assert placed != plain
    assert placed.model_copy(update={"cluster": plain.cluster}) == plain
    with pytest.raises(ConfigError, match=r"cluster\.qeue: unknown setting"):
        load_config(PRESETS / "tiny.toml", ["cluster.qeue=x"])
