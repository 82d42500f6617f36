"""The pods of a job as processes on this machine: together they get the result of one pod, and resume elsewhere."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_training import CONFIG, INPUTS, SELECTION, weights, write_inputs

from ngrpo.config.cluster import ClusterConfig, ResourcesConfig
from ngrpo.stages.task import Task
from ngrpo_kfp.components.launching.train_job_manifest import JobSettings, manifest

pytestmark = pytest.mark.pipeline

# Runs where a process of the group starts: it shards the model, as on GPUs. A random model answers nothing correctly: a reward that
# gives it something to learn. The first checkpoint is then the best, and the result.
HOOK = """
import sys
if "ngrpo.stages.torchrun" in sys.orig_argv and "ngrpo.stages.torchrun_agent" not in sys.orig_argv:
    from parallel_process import shard_on_processors
    from ngrpo.training import policy_optimization
    shard_on_processors()
    class LengthReward:
        __name__ = "correctness"
        def __init__(self, grader): pass
        def __call__(self, completions, **_): return [len(one[0]["content"]) % 7 / 7 for one in completions]
    policy_optimization.CorrectnessReward = LengthReward
"""


class Nodes:
    """Runs the pods of a job as processes of this machine, each in a directory of its own."""

    def __init__(self, root, store, config):
        self._root = root
        self._cluster = ClusterConfig(nodes=2, store=store)
        self._config = config
        self._count = 0

    def start(self, key, nodes):
        """Start two nodes with a process each, or one node with two."""
        references = {name: (self._root / f"{name}.json").read_text() for name in INPUTS}
        task = Task("ngrpo_training", json.dumps(self._config), key, "c0", references)
        needs = ResourcesConfig(gpus=0 if nodes == 2 else 2)  # a node without GPUs is one process
        job = manifest("job", task, JobSettings(image="i", needs=needs, cluster=self._cluster))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # What Kubeflow Trainer's torch runtime adds.
        torch = {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        added = [torch | {"PET_NODE_RANK": str(rank)} for rank in range(2)] if nodes == 2 else [{}]
        return [self._node(job["spec"]["trainer"], variables) for variables in added]

    def _node(self, trainer, added):
        self._count += 1
        scratch = self._root / f"node-{self._count}"
        told = {one["name"]: one["value"].replace("/scratch", str(scratch)) for one in trainer["env"]}
        command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
        environment = {**os.environ, **told, **added, "OMP_NUM_THREADS": "1"}
        with scratch.with_suffix(".log").open("w") as errors:
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


# `make test` has two processes that shard a model and go on (test_data_parallel.py), and the parts of two nodes (test_checkpoints.py).
@pytest.mark.long
def test_two_nodes_train_as_two_processes_of_one_do_and_go_on_elsewhere_when_one_is_taken_away(
    objects, store, tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    write_inputs(tmp_path)
    for name in INPUTS:
        published = store.publish(name, "k", tmp_path / name, config_digest="", code_version="", inputs={})
        published.write(tmp_path / f"{name}.json")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    here = Path(__file__).parent
    places = [str(tmp_path / "hook"), str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    training = CONFIG["training"] | {"save_steps": 2, "micro_batch_size": 4, "selection": SELECTION}
    nodes = Nodes(tmp_path, objects.uri, {**CONFIG, "training": training})

    (alone,) = nodes.start("alone", nodes=1)
    alone.communicate(timeout=300)
    assert alone.returncode == 0

    first, second = nodes.start("together", nodes=2)
    for line in first.stdout:
        if line.startswith("step 7/"):
            break
    second.send_signal(signal.SIGTERM)
    for node in (first, second):
        node.communicate(timeout=300)
        assert node.returncode != 0
    assert store.find("ngrpo_training", "together") is None
    saved = {key.split("/")[-1] for key in objects.list("checkpoints/")}
    parts = {f"{kind}-{rank}-of-2.pt" for kind in ("weights", "optimizer") for rank in (0, 1)}
    assert {"complete", "manifest.json", "rng_state_0.pth", "rng_state_1.pth"} | parts <= saved
    for number in (2, 3):  # each node has its own shards, and of the best the weights alone
        (best,) = tmp_path.glob(f"node-{number}/**/checkpoint-2")
        assert sorted(path.name for path in best.iterdir()) == ["complete", f"weights-{number - 2}-of-2.pt"]

    again = nodes.start("together", nodes=2)
    outputs = [node.communicate(timeout=300)[0] for node in again]
    assert [node.returncode for node in again] == [0, 0]
    assert re.search(r"^resuming from checkpoint-[4-9]", outputs[0], re.MULTILINE), "not the best, but the newest"
    assert [output.count("step 12/12 validation") for output in outputs] == [1, 0]
    ended, expected = (store.fetch(store.find("ngrpo_training", key)) for key in ("together", "alone"))
    assert weights(ended) == weights(expected) != weights(tmp_path / "warm_start")
    assert json.loads((ended / "metrics.json").read_text())["selected_step"] == 2
    assert (ended / "rollout_samples.json").read_bytes() == (expected / "rollout_samples.json").read_bytes()
    assert objects.list("checkpoints/") == []
