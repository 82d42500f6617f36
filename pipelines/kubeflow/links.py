"""Links to a run on a cluster, in the user interfaces of Kubeflow and MLflow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from kfp.client.client import KF_PIPELINES_UI_ENDPOINT_ENV

from ngrpo_kfp.pipelines.kubeflow.client import ENDPOINT, namespace

_PORT_OF_API = 8888
"""Port of `ml-pipeline`, which serves the API and no pages."""


def links(run_id: str, mlflow_run: str | None = None) -> Iterator[str]:
    """Yield the lines that link to a run.

    Args:
        run_id: The run.
        mlflow_run: Id of its MLflow run; None if it is not known, for example before the first stage has started.
    """
    yield f"kubeflow  {_page(run_id)}"
    address = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if address.startswith(("http://", "https://")):
        yield f"mlflow  {address}/#/{'experiments' if mlflow_run is None else f'runs/{mlflow_run}'}"


def _page(run_id: str) -> str:
    """Return the address of a run's page, or what to set to get one."""
    page = f"#/runs/details/{run_id}"
    named = os.environ.get(KF_PIPELINES_UI_ENDPOINT_ENV)
    parts = urlsplit(named or os.environ[ENDPOINT])
    if parts.port == _PORT_OF_API and not named:
        return f"{page} in Kubeflow's user interface; {KF_PIPELINES_UI_ENDPOINT_ENV} names its address"
    path = parts.path.rstrip("/")
    if path.endswith("/pipeline"):  # behind Kubeflow's dashboard, whose pages show one namespace
        path = f"{path.removesuffix('/pipeline')}/_/pipeline/?ns={namespace()}"
    else:
        path += "/"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}{page}"
