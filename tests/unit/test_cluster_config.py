"""The section `cluster` of the configuration."""

from pathlib import Path

import pytest

from ngrpo.config import load_config
from ngrpo.errors import ConfigError

TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"

# Each impossible setting, and what its one line of error must name.
IMPOSSIBLE = {
    'cluster.environment={"AWS_SECRET_ACCESS_KEY": "s3cr3t"}': (
        "environment.AWS_SECRET_ACCESS_KEY",
        "Kubernetes secret",
    ),
    'cluster.environment={"HF_TOKEN": "s3cr3t"}': ("environment.HF_TOKEN", "secrets.<secret>.HF_TOKEN"),
    'cluster.secrets={"a": {"X": "x"}, "b": {"X": "x"}}': ("X is set twice", "leave one"),
    "cluster.run_as_user=0": ("cluster.run_as_user", "greater than or equal to 1"),
    "cluster.priority_class=high": ("priority_class='high'", "needs a queue"),
    'cluster.labels={"kueue.x-k8s.io/queue-name": "q"}': ("labels.kueue.x-k8s.io/queue-name", "leave it out"),
    'cluster.labels={"ngrpo/stage": "s"}': ("labels.ngrpo/stage", "leave it out"),
    'cluster.labels={"team": "our team"}': ("cluster.labels.team", "(value 'our team')"),
    "cluster.image_pull_policy=Sometimes": ("cluster.image_pull_policy", "'Always'"),
    "cluster.store=/artifacts": ("cluster.store", "/artifacts"),
    "cluster.queue=Not_A_Name": ("cluster.queue", "Not_A_Name"),
    "cluster.stage_timeout_hours.training=3": ("cluster.stage_timeout_hours.training", "'ngrpo_training'"),
    'cluster.tolerations=[{"key": "gpu", "operator": "Equal"}]': ("toleration of gpu", "`Equal` needs a value"),
    "cluster.retry.backoff_factor=0.5": ("cluster.retry.backoff_factor", "0.5"),
    "cluster.nodes=0": ("cluster.nodes", "greater than or equal to 1"),
    "cluster.nodes=2": ("cluster.nodes=2", "resources.ngrpo_training.gpus=0"),
    "cluster.nodes_start_minutes=0": ("cluster.nodes_start_minutes", "greater than 0"),
}


@pytest.mark.parametrize("override", IMPOSSIBLE)
def test_an_impossible_setting_is_one_line_that_names_it(override):
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [override])
    message = str(failure.value)
    assert "\n" not in message
    assert "s3cr3t" not in message
    for part in IMPOSSIBLE[override]:
        assert part in message


def test_a_stage_may_have_a_timeout_of_its_own():
    cluster = load_config(TINY, ["cluster.timeout_hours=2", "cluster.stage_timeout_hours.ngrpo_training=5"]).cluster
    assert cluster.timeout_seconds("prepare_data") == 7200
    assert cluster.timeout_seconds("ngrpo_training") == 18000


@pytest.mark.parametrize("name", ["KF_PIPELINES_SA_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE"])
def test_the_name_of_a_file_with_a_credential_is_none(name):
    environment = load_config(TINY, [f'cluster.environment={{"{name}": "/var/run/token"}}']).cluster.environment
    assert environment == {name: "/var/run/token"}


def test_a_batch_that_the_nodes_cannot_share_is_refused():
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, ["cluster.nodes=3", "resources.ngrpo_training.gpus=2"])
    message = str(failure.value)
    assert "\n" not in message
    assert "cluster.nodes=3 x 2 GPUs" in message
    assert "training.prompts_per_batch=" in message
