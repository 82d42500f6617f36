"""Credentials in addresses and texts: taken off, refused, or left out."""

import os
from pathlib import Path

import pytest

from ngrpo.config import load_config
from ngrpo.environment import addresses_without_users, environment, holds_credential, redacted
from ngrpo.errors import ConfigError

TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"
CANARY = "canary-7f3a"


@pytest.mark.parametrize(
    ("uri", "without", "user", "password"),
    [
        (f"http://me:{CANARY}@host:5000/x", "http://host:5000/x", "me", CANARY),
        (f"https://me:{CANARY}%40%2F@host", "https://host", "me", f"{CANARY}@/"),
        (f"https://me:{CANARY}/p@ss@host/y", "https://host/y", "me", f"{CANARY}/p@ss"),
        (f"http://{CANARY}@host", "http://host", CANARY, None),
        ("http://host:5000", "http://host:5000", "before", "before"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db", "before", "before"),
        (f"postgresql://me:{CANARY}@host/db", "postgresql://host/db", "before", "before"),
    ],
)
def test_the_user_of_mlflows_address_becomes_variables_while_the_context_is_open(uri, without, user, password):
    given = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_USERNAME": "before",
        "MLFLOW_TRACKING_PASSWORD": "before",
        "AWS_ENDPOINT_URL": f"http://key:{CANARY}@s3:9000",
        "KF_PIPELINES_ENDPOINT": f"https://key:{CANARY}@kubeflow",
        "NGRPO_STORE": f"s3://key:{CANARY}@bucket/prefix",
    }
    with environment(given):
        with addresses_without_users():
            assert os.environ["MLFLOW_TRACKING_URI"] == without
            assert os.environ["MLFLOW_TRACKING_USERNAME"] == user
            assert os.environ.get("MLFLOW_TRACKING_PASSWORD") == password
            assert os.environ["AWS_ENDPOINT_URL"] == "http://s3:9000"
            assert os.environ["KF_PIPELINES_ENDPOINT"] == "https://kubeflow"
            assert os.environ["NGRPO_STORE"] == "s3://bucket/prefix"
        assert {name: os.environ[name] for name in given} == given


SECRET = {
    "PROXY": f"http://me:{CANARY}@proxy:3128",
    "ALSO_PROXY": f"me:{CANARY}@proxy:3128",
    "MLFLOW_TRACKING_URI": f"https://{CANARY}@host",
    "SLASH": f"https://me:{CANARY}/x@host",
    "DATABASE": f"postgresql+psycopg2://me:{CANARY}@db:5432/mlflow",
    "DSN": f"host=db user=me password={CANARY}",
    "QUERY": f"https://host/a?b=1&X-Amz-Signature={CANARY}",
    "SAS": f"https://host/a?sv=1&sig={CANARY}",
    "API": f"https://host/a?api_key={CANARY}",
    "ACCESS": f"https://host/?access_token={CANARY}",
    "HEADERS": f"Authorization=Bearer {CANARY}",
    "HOOK": f"https://hooks.slack.com/services/T0/B0/{CANARY}",
    "HUB": "hf_" + "a1" * 17,
    "AMAZON": "AKIA" + "Q" * 16,
    "SLACK_WEBHOOK_URL": "https://chat.example/1234",
    "JAVA": f"-Dx=1 -Djavax.net.ssl.keyStorePassword={CANARY}",
    "PGPASSWORD": CANARY,
    "DB_PASSWD": CANARY,
    "SSH_PRIVATE_KEY": CANARY,
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={CANARY}",
}
OPEN = {
    "NGRPO_S3_ENDPOINT_URL": "https://s3.example.com:9000",
    "SIX": "http://[fd00::1]:8080/x",
    "MLFLOW_TRACKING_URI": "http://mlflow.ngrpo.svc:5000",
    "MAIL": "me@example.com",
    "IMAGE": "registry.example/a:1@sha256:00",
    "NO_PROXY": "localhost,127.0.0.1,.svc",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_MAX_TOKENS": "3",
    "NGRPO_S3_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
    "PATHS": "/a:/b",
    "QUERY": "https://host/a?page=3&monkeys=1",
    "JAVA_OPTIONS": "-Dx=1 -Dy=2",
    "HOSTS": "http://a:80,http://b:81",
}


@pytest.mark.parametrize("name", SECRET)
def test_a_credential_in_the_environment_of_pods_is_refused_without_being_shown(name):
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [f'cluster.environment={{"{name}": "{SECRET[name]}"}}'])
    message = str(failure.value)
    assert "\n" not in message
    assert f"environment.{name}" in message
    assert "secret" in message
    assert CANARY not in message
    assert SECRET[name] not in message


def test_what_is_no_credential_is_not_refused():
    import json

    assert load_config(TINY, [f"cluster.environment={json.dumps(OPEN)}"]).cluster.environment == OPEN
    assert not any(map(holds_credential, OPEN.values()))


@pytest.mark.parametrize(
    "override",
    [
        f'cluster.environment={{"HF_TOKEN": ["{CANARY}"]}}',
        f'cluster.environment.aws_secret_access_key=["{CANARY}"]',
        f'cluster.secrets={{"HF_TOKEN": "{CANARY}"}}',
        f"cluster.secrets.hub={CANARY}",
        f'cluster.environmnt={{"HF_TOKEN": "{CANARY}"}}',
        f"HF_TOKEN={CANARY}",
        f"data.hf_token={CANARY}",
        f"cluster.store=s3://key:{CANARY}@bucket",
        f"model.source.id=https://me:{CANARY}@hub/org/model",
    ],
)
def test_a_credential_in_the_wrong_place_is_not_shown(override):
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [override])
    assert CANARY not in str(failure.value)


def test_a_credential_as_the_key_of_a_secret_is_refused():
    token = SECRET["HUB"]
    with pytest.raises(ConfigError, match=r"secrets\.hub holds a credential itself") as failure:
        load_config(TINY, [f'cluster.secrets={{"hub": {{"HF_TOKEN": "{token}"}}}}'])
    assert token not in str(failure.value)


@pytest.mark.parametrize(
    "text",
    [
        *(value for name, value in SECRET.items() if name not in ("SLACK_WEBHOOK_URL",) and value != CANARY),
        f"{{'HF_TOKEN': '{CANARY}'}}",
        f"(https://me:{CANARY}@host/x) refused; try 'http://you:{CANARY}@other'",
        f"the token {CANARY} is wrong",
        "Basic bWU6Y2FuYXJ5LTdmM2E=",
        "sent bWU6Y2FuYXJ5LTdmM2E= in vain",
    ],
)
def test_no_credential_is_left_in_a_text(text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    shown = redacted(text)
    for secret in (CANARY, "bWU6", SECRET["HUB"], SECRET["AMAZON"]):
        assert secret not in shown


@pytest.mark.parametrize("word", ["v", "a.b-", "key", "eyJ-"])
def test_a_word_of_any_length_is_looked_through_once(word):
    text = word * (100_000 // len(word))
    assert redacted(text) == text  # with a pattern that looks from each start to each end, this takes an hour


def test_ordinary_messages_stay_as_they_are():
    for text in (
        "object store s3://bucket/a: access refused (403); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the permissions",
        "KF_PIPELINES_ENDPOINT=http://127.0.0.1:9 cannot be reached (MaxRetryError): start the port-forward",
        "model 'org/name' (revision 012): its tokenizer has 63 tokens but its embedding matrix 60 rows",
        "`kubectl -n kubeflow create secret generic hub --from-literal=token=…`, or correct the settings",
        "KF_PIPELINES_SA_TOKEN_PATH=/a/token: there is no such file; correct it, or set KF_PIPELINES_TOKEN",
    ):
        assert redacted(text) == text
