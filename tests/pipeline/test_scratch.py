"""A stage may request its own amount of scratch disk; the others get the cluster's default."""

import pytest
from golden_ir import compiled

from ngrpo.config.cluster import ClusterConfig, ResourcesConfig
from ngrpo.stages.task import Task
from ngrpo_kfp.components.launching.train_job_manifest import JobSettings, manifest

pytestmark = pytest.mark.pipeline


def test_the_pod_of_a_stage_gets_the_disk_that_it_asks_for():
    _, platform = compiled("tiny", "resources.ngrpo_training.scratch_gib=77")
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    limits = {
        name: mount["sizeLimit"]
        for name, executor in executors.items()
        for mount in executor["emptyDirMounts"]
        if mount["volumeName"] == "scratch"
    }
    assert limits.pop("exec-ngrpo-training") == "77Gi"
    assert set(limits.values()) == {"200Gi"}


@pytest.mark.parametrize(("asked", "given"), [(77, "77Gi"), (None, "30Gi")])
def test_so_do_the_nodes_of_a_job(asked, given):
    task = Task(stage="ngrpo_training", config_json="{}", key="k", code_version="c", inputs={})
    settings = JobSettings(
        image="i", needs=ResourcesConfig(scratch_gib=asked), cluster=ClusterConfig(scratch_gib=30, nodes=2)
    )
    again = JobSettings.model_validate_json(settings.model_dump_json(exclude_defaults=True))
    (patch,) = manifest("job", task, again)["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    volumes = {volume["name"]: volume for volume in job["template"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": given}
