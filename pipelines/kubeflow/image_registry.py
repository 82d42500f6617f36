"""Check whether an image is in its registry without pulling it, through the registry API of OCI and Docker."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import requests

from ngrpo.errors import NGRPOError

_TIMEOUT = (5, 20)  # seconds to connect, and to answer
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_HUB = "registry-1.docker.io"
_HUB_LOGIN = "https://index.docker.io/v1/"
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$")
_FIELD = re.compile(r'(\w+)="([^"]*)"')


class RegistryError(NGRPOError):
    """A registry cannot be queried from here: it cannot be reached, or requires credentials that this machine does not have."""


def is_there(reference: str) -> bool:
    """Whether a registry has an image.

    The credentials are those of `docker login`, if they are in Docker's configuration file itself.

    Args:
        reference: `repository@sha256:digest`.

    Raises:
        RegistryError: The registry cannot be queried from here.
    """
    repository, _, digest = reference.partition("@")
    host, path, login = _located(repository)
    scheme = "http" if _LOOPBACK.fullmatch(host) else "https"
    url = f"{scheme}://{host}/v2/{path}/manifests/{digest}"
    credentials = _credentials(login)
    try:
        answer = _head(url, credentials)
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status_code == 401 and challenge.lower().startswith("bearer "):
            answer = _head(url, None, _token(challenge, credentials))
    except requests.RequestException as error:
        raise RegistryError(f"registry {host} cannot be reached from here ({type(error).__name__})") from error
    if answer.status_code == 404:
        return False
    if not answer.ok:
        raise RegistryError(f"registry {host} refuses ({answer.status_code}): log in with `docker login {host}`")
    return True


def _located(repository: str) -> tuple[str, str, str]:
    """Return the host and path of a repository, and the name of the host in Docker's configuration file."""
    host, slash, path = repository.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        return (_HUB, path, _HUB_LOGIN) if host == "docker.io" else (host, path, host)
    return _HUB, repository if slash else f"library/{repository}", _HUB_LOGIN


def _head(url: str, credentials: tuple[str, str] | None, token: str | None = None) -> requests.Response:
    headers = {"Accept": _ACCEPT} | ({"Authorization": f"Bearer {token}"} if token else {})
    return requests.head(url, headers=headers, auth=credentials, timeout=_TIMEOUT, allow_redirects=True)


def _token(challenge: str, credentials: tuple[str, str] | None) -> str | None:
    """Fetch a token from the server named in a registry's `WWW-Authenticate`; None if that is refused.

    Raises:
        requests.RequestException: The token server cannot be reached, or does not answer with JSON.
    """
    fields = dict(_FIELD.findall(challenge))
    answer = requests.get(
        fields.pop("realm", ""), params={**fields}, auth=credentials, timeout=_TIMEOUT, allow_redirects=True
    )
    if not answer.ok:
        return None
    given = answer.json()
    token: str | None = given.get("token") or given.get("access_token")
    return token


def _credentials(host: str) -> tuple[str, str] | None:
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))["auths"][host]["auth"]
        user, _, password = base64.b64decode(entry).decode().partition(":")
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is no such file, or a credential helper has the password
    return user, password
