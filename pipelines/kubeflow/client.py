"""Client for Kubeflow Pipelines: kfp's client with time limits, retries of safe requests, and errors that say what to do."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import kfp
import kfp_server_api
from kfp.client import (
    KF_PIPELINES_SA_TOKEN_ENV,
    KF_PIPELINES_SA_TOKEN_PATH,
    ServiceAccountTokenVolumeCredentials,
)
from urllib3.exceptions import HTTPError, MaxRetryError

from ngrpo.errors import ClusterError
from ngrpo_kfp.components.serving.kubernetes_objects import RETRIES

ENDPOINT = "KF_PIPELINES_ENDPOINT"
NAMESPACE = "KF_PIPELINES_NAMESPACE"
TOKEN = "KF_PIPELINES_TOKEN"
EXPERIMENT = "ngrpo"
"""Kubeflow experiment of all runs and schedules of ngrpo."""

OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
"""States of a run that has ended."""

_TIMEOUT = (5, 60)  # seconds to connect, and between two bytes of an answer
_PAGE = 100
_ABORTED = 10  # gRPC's code for conflicting changes; its HTTP status is the same as for a name that is taken

# It logs every retry; `explained` reports the outcome once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


class _Client(kfp.Client):
    """kfp's client with time limits and retries, for which it has no settings."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        # All its API objects share one connection pool.
        connection = self._run_api.api_client.rest_client
        connection.request = _limited(connection.request)

    def _load_config(self, *arguments: Any) -> kfp_server_api.Configuration:
        config = super()._load_config(*arguments)
        config.retries = RETRIES
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        """Ask once: stock kfp asks five times whatever the answer, even after a refusal."""
        answer = self._healthz_api.healthz_service_get_healthz(_request_timeout=_TIMEOUT)
        if answer.multi_user is None:
            raise ClusterError(
                f"{_address()} answers, but it is not the API of Kubeflow Pipelines: correct the address"
            )
        return answer


def connect() -> kfp.Client:
    """Return a client of the Kubeflow Pipelines that the environment names, after making sure that it answers.

    Raises:
        ClusterError: The address or a configured token is missing, or the API there cannot be used.
    """
    if not os.environ.get(ENDPOINT):
        raise ClusterError(
            f"{ENDPOINT} is not set: name the API of Kubeflow Pipelines, for example http://127.0.0.1:8888 while "
            "`kubectl -n kubeflow port-forward svc/ml-pipeline 8888` runs"
        )
    if urlsplit(os.environ[ENDPOINT]).scheme not in ("http", "https"):
        raise ClusterError(f"{_address()}: write http://host:port or https://host")
    with explained("Kubeflow Pipelines"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return _Client(
            host=os.environ[ENDPOINT],
            namespace=namespace(),
            existing_token=os.environ.get(TOKEN) or None,
            credentials=_own_credentials(),
            # Its HTTP library reads neither variable, unlike those of MLflow and boto3.
            ssl_ca_cert=os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE"),
        )


def _own_credentials() -> ServiceAccountTokenVolumeCredentials | None:
    """Return the credentials of this pod, if it has a token for the API. kfp reads the token for every request, because it changes."""
    named = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV)
    path = named or KF_PIPELINES_SA_TOKEN_PATH
    if os.path.exists(path):
        return ServiceAccountTokenVolumeCredentials(path)
    if named:
        raise ClusterError(f"{KF_PIPELINES_SA_TOKEN_ENV}={named}: there is no such file; correct it, or set {TOKEN}")
    return None


def namespace() -> str:
    """Return the namespace of the runs."""
    return os.environ.get(NAMESPACE) or "kubeflow"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of the API into one line, and keep kfp from printing links.

    Args:
        what: The object of the request, for example `run 1234`.

    Raises:
        ClusterError: The API refused or could not be reached.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except kfp_server_api.ApiException as error:
        raise ClusterError(f"{what}: {_address()} {_refusal(error)}") from error
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        # Safe requests, and requests that could not be sent, end in a MaxRetryError.
        unsure = "" if isinstance(error, MaxRetryError) else "; it may have been done: see `ngrpo status`"
        raise ClusterError(
            f"{what}: {_address()} cannot be reached ({type(reason).__name__}): start the port-forward or correct the "
            f"address{unsure}"
        ) from error


def workflow_of(client: kfp.Client, run_id: str) -> dict[str, Any]:
    """Return the Argo Workflow of a run as Kubeflow stores it, with Argo's messages on each node.

    API v2beta1 has the states of tasks but no reasons. In KFP 2.17 v1beta1 has them, even after the Workflow is gone.

    Args:
        client: Client of Kubeflow Pipelines.
        run_id: The run.

    Raises:
        ClusterError: There is no such run, or the API cannot be reached.
    """
    with explained(f"run {run_id}"):
        answer = client._run_api.api_client.call_api(
            f"/apis/v1beta1/runs/{run_id}",
            "GET",
            header_params={"Accept": "application/json"},
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )
    text = (answer.get("pipeline_runtime") or {}).get("workflow_manifest")
    try:
        return dict(json.loads(text or "{}"))
    except ValueError as error:
        raise ClusterError(
            f"run {run_id}: the Workflow that {_address()} keeps of it is not JSON: see its log"
        ) from error


def every(list_page: Callable[..., Any], field: str, **arguments: Any) -> Iterator[Any]:
    """Return the items of all pages of a list.

    Args:
        list_page: A `list_*` method of the client.
        field: The field of its answer that holds the items.
        arguments: Further arguments of the method.
    """
    token = ""
    while True:
        page = list_page(page_token=token, page_size=_PAGE, **arguments)
        yield from getattr(page, field) or ()
        token = page.next_page_token
        if not token:
            return


def experiment_id(client: kfp.Client) -> str:
    """Return the id of the experiment of ngrpo's runs, which is created if missing."""
    with explained(f"experiment {EXPERIMENT}"):
        return str(client.create_experiment(EXPERIMENT, namespace=client.get_user_namespace()).experiment_id)


def existing_experiment(client: kfp.Client) -> str | None:
    """Return the id of the experiment of ngrpo's runs; None if there is none yet."""
    same_name = {"operation": "EQUALS", "key": "display_name", "stringValue": EXPERIMENT}
    with explained(f"experiment {EXPERIMENT}"):
        found = client.list_experiments(filter=json.dumps({"predicates": [same_name]})).experiments
    return str(found[0].experiment_id) if found else None


def _limited(request: Callable[..., Any]) -> Callable[..., Any]:
    def limited(*arguments: Any, _request_timeout: Any = None, **settings: Any) -> Any:
        return request(*arguments, _request_timeout=_request_timeout or _TIMEOUT, **settings)

    return limited


def _refusal(error: kfp_server_api.ApiException) -> str:
    message = _message(error.body)
    if error.status in (401, 403):
        return (
            f"refuses the credentials ({error.status}): set {TOKEN} to a token of an account with the right to do this"
        )
    if error.status == 404:
        return f"has no such thing ({message}): `ngrpo status` and `ngrpo schedule list` show what is there"
    if error.status == 412 or (error.status == 409 and _code(error.body) == _ABORTED):
        return f"refused, because of another change at the same time ({error.status}: {message}): try again"
    if error.status == 409:
        return f"already has one of that name ({message}): choose another name"
    if error.status == 429:
        return f"is overloaded ({message}): try again in a minute"
    if error.status is not None and error.status >= 500:
        return f"failed ({error.status}: {message}): see the log of ml-pipeline, and try again"
    return f"refused ({error.status}: {message})"


def _code(body: Any) -> int | None:
    """Return the gRPC code of an error, which is more specific than the HTTP status."""
    return _answer(body).get("code")


def _answer(body: Any) -> dict[str, Any]:
    try:
        answer = json.loads(body or "{}")
    except ValueError:  # a proxy's page
        return {}
    return answer if isinstance(answer, dict) else {}


def _message(body: Any) -> str:
    """Return the first line of an error's text. The API sends JSON; a proxy in front of it may send anything."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    answer = _answer(text)
    told = answer.get("message") or answer.get("error_message")
    return (str(told or text).strip().splitlines() or ["no reason given"])[0][:200]


def _address() -> str:
    """Return the variable that names the API, and its value without a password."""
    parts = urlsplit(os.environ.get(ENDPOINT, ""))
    return f"{ENDPOINT}={parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}"
