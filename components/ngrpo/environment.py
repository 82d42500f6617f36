"""Environment variables: for the time of a context, and without letting the credentials in them out."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

CREDENTIAL = re.compile(
    r"(ACCESS_KEY|ACCOUNT_KEY|PRIVATE_KEY|SIGNING_KEY|API_?KEY|PASSW(OR)?D|PASSPHRASE|SECRET|TOKEN(?!S|IZER)|CREDENTIAL|WEBHOOK"
    r"|CONNECTION_STRING|COOKIE)(?!.*_(FILE|PATH)$)",
    re.IGNORECASE,
)
"""Names of variables that hold credentials. What names a file is none: KF_PIPELINES_SA_TOKEN_PATH, AWS_WEB_IDENTITY_TOKEN_FILE."""

SAVE_MINUTES = "NGRPO_SAVE_MINUTES"
"""Environment variable of a stage: a training saves at least that often, beside its `save_steps`."""
PRICES = "NGRPO_COSTS"
"""Environment variable of a stage: the prices of the configuration as JSON, for the model card and MLflow. No key depends on it."""
METRICS_PORT = "NGRPO_METRICS_PORT"
"""Environment variable of a stage: port on which a training can be scraped by Prometheus; none keeps it closed."""
METRICS_HOST = "NGRPO_METRICS_HOST"
"""Environment variable of a stage: address that it listens on there; loopback unless it is set."""

_ADDRESSES: Mapping[str, tuple[str, str] | None] = {
    "MLFLOW_TRACKING_URI": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "MLFLOW_REGISTRY_URI": None,
    "AWS_ENDPOINT_URL": None,
    "AWS_ENDPOINT_URL_S3": None,
    "NGRPO_S3_ENDPOINT_URL": None,
    "KF_PIPELINES_ENDPOINT": None,
    "NGRPO_STORE": None,
}
"""Addresses that are shown and recorded, and the variables that take user and password of each; nothing reads those of the others."""
_NAME = (
    r"(?:token|secret|passw(?:or)?d|pwd|passphrase|signature|sig|credential|auth"
    r"|(?:api|access|account|private|signing)?[-_]?key(?:[-_]?id)?)"
)
_USER = re.compile(r"(\w://)[^\s'\"<>]*@")  # a password that is not quoted may hold any sign, a slash too
# What stands before a name is bounded: lines of a log may have words of megabytes, and each end of one would be tried from each start.
_PARAMETER = re.compile(
    rf"((?:^|[?&;\s'\"(])[\w.-]{{0,100}}{_NAME}=|{_NAME}['\"]\s*:\s*['\"]?)[^\s&;'\"<>),}}\]]+", re.IGNORECASE
)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
# Tokens and private keys, which are known by their form, and addresses that are secrets themselves.
_FORM = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{8,}|\bsk-[\w-]{16,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|\b(?:hooks\.slack\.com/(?:services|workflows)|discord(?:app)?\.com/api/webhooks"
    r"|[\w.-]{0,100}webhook\.office\.com)/[^\s'\"<>]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
# What follows the first colon of an address is a port, or it is a password that has signs of an address in it.
_USER_IN_VALUE = re.compile(
    r"\w://[^/?#\s]*@|\w://[^/?#\s:@\[]*:(?!\d{1,5}(?:[/?#,\s]|$))[^\s]*@|^[^\s/@:=]+:[^\s/@]+@(?!sha256:)[^\s/@]"
)
_S3 = "NGRPO_S3_"
_SHORTEST = 6
"""A credential of fewer characters is not looked for in texts: it would be found in words."""


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, which child processes inherit, or remove those that are none, while the context is open."""
    before = {name: os.environ.get(name) for name in variables}
    _assign(variables)
    try:
        yield
    finally:
        _assign(before)


@contextmanager
def addresses_without_users() -> Iterator[None]:
    """Take user and password off the addresses in the environment while the context is open; MLflow's become variables.

    Addresses are shown, recorded and passed on: none may hold a password. To be entered once, at the start of a command or a stage.
    """
    changed: dict[str, str | None] = {}
    for name, variables in _ADDRESSES.items():
        value = os.environ.get(name)
        if value is None or _USER.search(value) is None:
            continue
        changed[name] = _USER.sub(r"\1", value)
        if variables is not None and value.startswith(("http://", "https://")):
            user, _, password = value.partition("://")[2].rpartition("@")[0].partition(":")
            changed |= {variables[0]: unquote(user), variables[1]: unquote(password) or None}
    with environment(changed):
        yield


def adopt_s3_names() -> None:
    """Set boto3's variables from ours: `AWS_ENDPOINT_URL` from `NGRPO_S3_ENDPOINT_URL`, and so on.

    A pod of Kubeflow runs its launcher in the stage's container. It keeps Kubeflow's own files in a store of Kubeflow's, and would take
    `AWS_*` for the way there.
    """
    for name, value in list(os.environ.items()):
        if name.startswith(_S3) and value:
            rest = name.removeprefix(_S3)
            os.environ[f"AWS_{'DEFAULT_REGION' if rest == 'REGION' else rest}"] = value


def holds_credential(value: str) -> bool:
    """Say whether a text holds a credential: an address with a user, a parameter or header that is one, a token of a known form."""
    return any(pattern.search(value) for pattern in (_USER_IN_VALUE, _PARAMETER, _HEADER, _FORM))


def redacted(text: str) -> str:
    """Return a text of unknown origin, an error of a library for example, without the credentials that may be in it.

    Users and passwords of addresses, parameters and headers that look like credentials are taken out, and the values of the environment
    variables that hold some.
    """
    for value in _credentials():
        text = text.replace(value, "***")
    text = _USER.sub(r"\1", text)
    return _FORM.sub("***", _HEADER.sub(r"\1 ***", _PARAMETER.sub(r"\1***", text)))


def _credentials() -> list[str]:
    """Return the credentials in the environment, in the forms that a message may have, longest first."""
    values = {value for name, value in os.environ.items() if CREDENTIAL.search(name)}
    for value in os.environ.values():
        if "@" in value and "://" in value:
            values |= {password for password in (_password(each) for each in value.split()) if password}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        values.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    elif user:
        values.add(user)  # a token takes the place of both
    values |= {unquote(value) for value in values}
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


def _password(address: str) -> str | None:
    try:
        return urlsplit(address).password
    except ValueError:
        return None


def _assign(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
