"""Environment variables: set for the duration of a context, with the credentials in them kept out of all output."""

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
"""Names of variables that hold credentials. Those that hold the path of a file do not match, like AWS_WEB_IDENTITY_TOKEN_FILE."""

SAVE_MINUTES = "NGRPO_SAVE_MINUTES"
"""Environment variable of a stage: longest time between two checkpoints of a training in minutes, in addition to `save_steps`."""
PRICES = "NGRPO_COSTS"
"""Environment variable of a stage: the prices of the configuration as JSON, for the model card and MLflow. No key depends on it."""
METRICS_PORT = "NGRPO_METRICS_PORT"
"""Environment variable of a stage: port on which a training serves metrics for Prometheus; if unset, it serves none."""
METRICS_HOST = "NGRPO_METRICS_HOST"
"""Environment variable of a stage: address to serve those metrics on; loopback if unset."""

_ADDRESSES: Mapping[str, tuple[str, str] | None] = {
    "MLFLOW_TRACKING_URI": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    "MLFLOW_REGISTRY_URI": None,
    "AWS_ENDPOINT_URL": None,
    "AWS_ENDPOINT_URL_S3": None,
    "NGRPO_S3_ENDPOINT_URL": None,
    "KF_PIPELINES_ENDPOINT": None,
    "NGRPO_STORE": None,
}
"""Variables with addresses that are shown and recorded, and the variables that user and password are moved to. With None they are
dropped, because nothing reads them."""
_NAME = (
    r"(?:token|secret|passw(?:or)?d|pwd|passphrase|signature|sig|credential|auth"
    r"|(?:api|access|account|private|signing)?[-_]?key(?:[-_]?id)?)"
)
_USER = re.compile(r"(\w://)[^\s'\"<>]*@")  # an unquoted password may contain any character, even a slash
# The text before a name is bounded: on a log line with a word of megabytes the search would otherwise take quadratic time.
_PARAMETER = re.compile(
    rf"((?:^|[?&;\s'\"(])[\w.-]{{0,100}}{_NAME}=|{_NAME}['\"]\s*:\s*['\"]?)[^\s&;'\"<>),}}\]]+", re.IGNORECASE
)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
# Tokens and private keys, recognized by their format, and addresses that are secrets themselves.
_FORM = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{8,}|\bsk-[\w-]{16,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|\b(?:hooks\.slack\.com/(?:services|workflows)|discord(?:app)?\.com/api/webhooks"
    r"|[\w.-]{0,100}webhook\.office\.com)/[^\s'\"<>]+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
# After the first colon of an address comes a port. Anything else is a password, which may contain '/', '?' or '#'.
_USER_IN_VALUE = re.compile(
    r"\w://[^/?#\s]*@|\w://[^/?#\s:@\[]*:(?!\d{1,5}(?:[/?#,\s]|$))[^\s]*@|^[^\s/@:=]+:[^\s/@]+@(?!sha256:)[^\s/@]"
)
_S3 = "NGRPO_S3_"
_SHORTEST = 6
"""Shorter credentials are not replaced in texts, because they would match parts of ordinary words."""


@contextmanager
def environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables while the context is open, for child processes too; None removes a variable."""
    before = {name: os.environ.get(name) for name in variables}
    _assign(variables)
    try:
        yield
    finally:
        _assign(before)


@contextmanager
def addresses_without_users() -> Iterator[None]:
    """Remove user and password from the addresses in the environment while the context is open; MLflow's are moved to its variables.

    Addresses are shown, recorded and passed on, so none may contain a password. Enter this once, at the start of a command or a stage.
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

    In a pod, Kubeflow's launcher runs in the stage's container. It accesses Kubeflow's own object store, and would use `AWS_*` for that.
    """
    for name, value in list(os.environ.items()):
        if name.startswith(_S3) and value:
            rest = name.removeprefix(_S3)
            os.environ[f"AWS_{'DEFAULT_REGION' if rest == 'REGION' else rest}"] = value


def holds_credential(value: str) -> bool:
    """Return whether a text contains a credential: an address with a user, a secret parameter or header, or a token of a known format."""
    return any(pattern.search(value) for pattern in (_USER_IN_VALUE, _PARAMETER, _HEADER, _FORM))


def redacted(text: str) -> str:
    """Return a text of unknown origin, such as the error of a library, with credentials removed.

    Removed are users and passwords in addresses, parameters and headers that look like credentials, tokens of known formats, and the
    values of environment variables that hold credentials.
    """
    for value in _credentials():
        text = text.replace(value, "***")
    text = _USER.sub(r"\1", text)
    return _FORM.sub("***", _HEADER.sub(r"\1 ***", _PARAMETER.sub(r"\1***", text)))


def _credentials() -> list[str]:
    """Return the credentials in the environment, in every form in which a message may contain them, longest first."""
    values = {value for name, value in os.environ.items() if CREDENTIAL.search(name)}
    for value in os.environ.values():
        if "@" in value and "://" in value:
            values |= {password for password in (_password(each) for each in value.split()) if password}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        values.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    elif user:
        values.add(user)  # without a password, the user is a token
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
