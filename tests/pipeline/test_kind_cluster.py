"""k8s/kind: the one command that makes a cluster, run with tools that only write down how they are called; the workflow that uses it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "k8s" / "kind" / "install.sh"
IMAGE = f"localhost:5001/ngrpo-cpu@sha256:{'ab' * 32}"
KEY = "5ec4e7" * 6
TOOL = f"""#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
  "kind get clusters"*) cat "$CLUSTERS" ;;
  "kind get nodes"*) echo ngrpo-control-plane ;;
  "docker inspect --format"*) echo null ;;
  "docker inspect"*) [[ -s "$CLUSTERS" ]] ;;
  *"get secret"*) [[ -s "$CLUSTERS" ]] ;;
  "kubectl config"*) echo kind-ngrpo ;;
  "kubectl kustomize"*) printf 'image: ngrpo-cpu\\n' ;;
  "python -c import secrets"*) echo {KEY} ;;
  "python -m images.build"*) printf 'cpu = "{IMAGE}"\\n' > images/images.lock ;;
  *" -f -"* | *"/dev/stdin"*) cat >> "$STDIN" ;;
esac
"""


class Machine:
    """A copy of k8s/ and images/ with tools that do nothing."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(ROOT / "k8s", folder / "k8s")
        (folder / "images").mkdir()
        (folder / "bin").mkdir()
        for name in ("docker", "git", "kubectl", "kind", "python"):
            (folder / "bin" / name).write_text(TOOL)
            (folder / "bin" / name).chmod(0o755)
        for name in ("calls", "stdin", "clusters"):
            (folder / name).write_text("")

    def install(self, **variables):
        (self.folder / "calls").write_text("")
        (self.folder / "stdin").write_text("")
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "CALLS": str(self.folder / "calls"),
            "STDIN": str(self.folder / "stdin"),
            "CLUSTERS": str(self.folder / "clusters"),
            "PYTHON": str(self.folder / "bin" / "python"),
        }
        script = self.folder / "k8s" / "kind" / "install.sh"
        return subprocess.run(
            ["bash", str(script)], env=environment | variables, cwd="/", capture_output=True, text=True, timeout=60
        )

    def calls(self):
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def place(calls, words):
    """Return where in a list of calls one is that has some words."""
    (found, *_) = [number for number, call in enumerate(calls) if words in call]
    return found


def versions():
    return dict(re.findall(r"^(\w+)_VERSION=\$\{\w+:-([\d.]+)\}", SCRIPT.read_text(), re.MULTILINE))


def test_it_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert SCRIPT.stat().st_mode & 0o111


def test_it_makes_a_cluster_with_everything_in_order(machine):
    ended = machine.install()
    assert ended.returncode == 0, ended.stderr
    calls = machine.calls()
    order = [
        "docker run",
        "kind create cluster --name ngrpo",
        "docker network connect kind",
        "images.build localhost:5001/ngrpo cpu",
        "kubeflow/trainer//manifests/overlays/manager?ref=v2.3.0",
        "kueue/releases/download/v0.19.2/manifests.yaml",
        "create configmap kueue-manager-config --from-file=controller_manager_config.yaml=k8s/kind/kueue.yaml",
        "rollout restart deployment/kueue-controller-manager",
        "-n kueue-system wait --for condition=Available",
        "kustomize/cluster-scoped-resources?ref=2.17.0",
        "kustomize/env/platform-agnostic?ref=2.17.0",
        "apply --server-side --force-conflicts -k k8s/cluster",
        "kubectl kustomize k8s/overlays/dev",
        "rollout status --timeout=15m statefulset/object-store",
    ]
    places = [place(calls, words) for words in order]
    assert places == sorted(places)
    applied = (machine.folder / "stdin").read_text()
    assert applied.count(f"image: {IMAGE}") == 2, "of the overlay, and of the training runtime"
    assert "image: ngrpo-" not in applied
    assert '[host."http://ngrpo-registry:5000"]' in applied
    assert "export KF_PIPELINES_ENDPOINT=http://127.0.0.1:8888" in ended.stdout
    assert "make test-cluster" in ended.stdout


def test_its_keys_are_made_once_and_never_shown(machine):
    ended = machine.install()
    assert (machine.folder / "stdin").read_text().count(KEY) == 2
    assert KEY not in ended.stdout + ended.stderr + "\n".join(machine.calls())
    (machine.folder / "clusters").write_text("ngrpo\n")
    assert machine.install().returncode == 0
    assert KEY not in (machine.folder / "stdin").read_text()
    assert not [call for call in machine.calls() if "kind create" in call or "docker run" in call]


def test_it_uses_a_cluster_that_is_there(machine):
    refused = machine.install(CLUSTER="none")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "install.sh: REPOSITORY is not set: name an address that you can push to and the cluster can pull from"
    ]
    ended = machine.install(CLUSTER="none", REPOSITORY="registry.example.com/me/ngrpo", KFP_VERSION="2.18.0")
    assert ended.returncode == 0, ended.stderr
    calls = machine.calls()
    assert not [call for call in calls if call.startswith(("kind", "docker"))]
    assert place(calls, "images.build registry.example.com/me/ngrpo cpu") < place(calls, "platform-agnostic?ref=2.18.0")


def test_what_is_missing_or_refused_is_one_line(machine):
    assert machine.install(CLUSTER="k3d").stderr.startswith("install.sh: CLUSTER=k3d: kind makes a cluster")
    (machine.folder / "bin" / "kind").unlink()
    ended = machine.install()
    assert ended.returncode == 1
    assert ended.stderr == "install.sh: kind is missing: install it\n"


def test_a_webhook_that_is_not_ready_yet_is_tried_again(machine):
    kubectl = machine.folder / "bin" / "kubectl"
    refused_once = 'if [[ $* == *"-k k8s/cluster"* && ! -e $CALLS.refused ]]; then touch "$CALLS.refused"; exit 1; fi\n'
    kubectl.write_text(TOOL.replace("case", refused_once + "case", 1))
    (machine.folder / "bin" / "sleep").write_text("#!/bin/sh\n")
    (machine.folder / "bin" / "sleep").chmod(0o755)
    ended = machine.install()
    assert ended.returncode == 0, ended.stderr
    assert len([call for call in machine.calls() if "-k k8s/cluster" in call]) == 2


@pytest.mark.parametrize(
    "document",
    ["README.md", "docs/cluster.md", "k8s/cluster/kustomization.yaml", "k8s/overlays/gpu/training-runtime.yaml"],
)
def test_documents_name_the_versions_that_it_installs(document):
    path = ROOT / document
    if not path.exists():
        pytest.skip(f"NOT CHECKED: there is no {document}")
    text = path.read_text()
    names = {"KFP": r"Kubeflow Pipelines\]?(?:\([^)]*\))?", "TRAINER": r"Kubeflow Trainer\]?(?:\([^)]*\))?\s*"}
    for tool, name in names.items():
        for named in re.findall(rf"{name}\s+v?(\d+(?:\.\d+)+)", text):
            assert (versions()[tool] + ".").startswith(named + "."), f"{document}: {tool} {named}"
    for line in text.splitlines():
        for oldest in re.findall(r"(\d+)\.(\d+) or newer", line) if "Kueue" in line else ():
            assert tuple(map(int, oldest)) <= tuple(map(int, versions()["KUEUE"].split(".")))
    for named in re.findall(r"JobSet\s+v?(\d+(?:\.\d+)+)", text):
        assert f"JobSet {named}" in SCRIPT.read_text()


def test_the_client_and_the_cluster_are_of_one_minor_version():
    """The client of a patch is made for all clusters of its minor version."""
    minor = versions()["KFP"].rpartition(".")[0]
    assert f'"kfp[kubernetes]=={minor}.' in (ROOT / "pyproject.toml").read_text()


def test_the_cluster_has_room_on_a_small_machine():
    cluster = yaml.safe_load((ROOT / "k8s" / "kind" / "cluster.yaml").read_text())
    roles = [node["role"] for node in cluster["nodes"]]
    assert roles == ["control-plane", "worker", "worker"], "each offers all processors of the machine"


def test_kueue_manages_pods_and_train_jobs_in_the_namespace_of_runs_alone():
    settings = yaml.safe_load((ROOT / "k8s" / "kind" / "kueue.yaml").read_text())
    assert settings["integrations"]["frameworks"] == ["pod", "trainer.kubeflow.org/trainjob"]
    dev = yaml.safe_load((ROOT / "k8s" / "overlays" / "dev" / "kustomization.yaml").read_text())
    selected = settings["managedJobsNamespaceSelector"]["matchLabels"]
    assert selected == {"kubernetes.io/metadata.name": dev["namespace"]}


def test_the_workflow_makes_a_cluster_and_tests_on_it():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "cluster.yml").read_text())
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert set(triggers) == {"schedule", "workflow_dispatch"}
    assert workflow["concurrency"]["group"]
    job = workflow["jobs"]["kind"]
    assert job["timeout-minutes"] <= 360, "the longest that GitHub lets a job take"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands.index("k8s/kind/install.sh") < commands.index("make test-cluster")
    on_failure = [step for step in job["steps"] if step.get("if") == "failure()"]
    assert any(step.get("uses", "").startswith("actions/upload-artifact@") for step in on_failure)
