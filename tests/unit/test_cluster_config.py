"""The section `cluster` of the configuration."""

from pathlib import Path

import pytest

from ngrpo.config import load_config
from ngrpo.errors import ConfigError

TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"

# Each impossible setting, and what its one line of error must name.
IMPOSSIBLE = {
    'cluster.environment={"NGRPO_S3_SECRET_ACCESS_KEY": "s3cr3t"}': (
        "environment.NGRPO_S3_SECRET_ACCESS_KEY",
        "Kubernetes secret",
    ),
    'cluster.environment={"HTTPS_PROXY": "http://me:s3cr3t@proxy.example:3128"}': (
        "environment.HTTPS_PROXY",
        "secrets.<secret>.HTTPS_PROXY",
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
    "cluster.retry.backoff_factor=0": ("cluster.retry.backoff_factor", "greater than or equal to 1"),
    "cluster.retry.backoff_factor=1.5": ("cluster.retry.backoff_factor", "1.5"),
    "cluster.retry.backoff_max_seconds=3600": ("cluster.retry.backoff_max_seconds", "unknown setting"),
    "cluster.retry.lost_pods=-1": ("cluster.retry.lost_pods", "greater than or equal to 0"),
    "cluster.save_minutes=0": ("cluster.save_minutes", "greater than 0"),
    "cluster.nodes=0": ("cluster.nodes", "greater than or equal to 1"),
    "cluster.nodes=2": ("256 sequences cannot be shared by cluster.nodes=2 x 1 process", "nodes x processes = 512"),
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


def test_what_the_launcher_of_kubeflow_would_take_is_refused_at_once_with_our_names_for_it():
    endpoint = 'cluster.environment={"AWS_ENDPOINT_URL": "http://s3", "AWS_DEFAULT_REGION": "eu", "AWSOME": "x"}'
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [endpoint, 'cluster.secrets={"s": {"AWS_ACCESS_KEY_ID": "id"}}'])
    message = str(failure.value)
    assert "\n" not in message
    assert "environment.AWS_DEFAULT_REGION, environment.AWS_ENDPOINT_URL, secrets.s.AWS_ACCESS_KEY_ID: " in message
    assert message.endswith("write NGRPO_S3_REGION, NGRPO_S3_ENDPOINT_URL, NGRPO_S3_ACCESS_KEY_ID")


def test_pods_are_told_of_the_authority_that_they_trust():
    assert not {"SSL_CERT_FILE", "NGRPO_S3_CA_BUNDLE"} & set(load_config(TINY).cluster.pod_environment())
    cluster = load_config(TINY, ["cluster.certificate_authority=authorities"]).cluster
    told = {name for name, value in cluster.pod_environment().items() if value == "/var/run/ngrpo/certificates/ca.crt"}
    assert told == {"NGRPO_S3_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE is set by certificate_authority='authorities': leave one"):
        load_config(
            TINY, ["cluster.certificate_authority=authorities", 'cluster.environment={"SSL_CERT_FILE": "/etc/own.crt"}']
        )


@pytest.mark.parametrize("name", ["KF_PIPELINES_SA_TOKEN_PATH", "NGRPO_S3_WEB_IDENTITY_TOKEN_FILE"])
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


def test_nodes_need_no_gpus():
    config = load_config(TINY, ["cluster.nodes=2", "training.micro_batch_size=128"])
    assert config.needs("ngrpo_training").gpus == 0
