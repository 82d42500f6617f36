"""`ngrpo doctor`: check whether a cluster has what runs need, with one line and a cure for each. It leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from ngrpo.config import RunConfig
from ngrpo.environment import environment, redacted
from ngrpo.errors import ClusterError, NGRPOError
from ngrpo.report.phases import messages, phase
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError, Refused, skew
from ngrpo_kfp.pipelines.kubeflow.client import ENDPOINT, connect, explained, namespace
from ngrpo_kfp.pipelines.kubeflow.doctor import installed
from ngrpo_kfp.pipelines.kubeflow.doctor import namespace as profile
from ngrpo_kfp.pipelines.kubeflow.doctor.probe import probe
from ngrpo_kfp.pipelines.kubeflow.doctor.reach import CLOCK_SECONDS, reached
from ngrpo_kfp.pipelines.kubeflow.finding import Finding
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import Kubernetes
from ngrpo_kfp.pipelines.kubeflow.preflight import checks

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("?", "yellow")}


def examine(config: RunConfig, images: Images, console: Console, *, pod: bool = True, as_json: bool = False) -> None:
    """Check a cluster, and print each finding as it is made; or all of them at the end, as JSON.

    Args:
        config: Configuration of the planned runs: `cluster` and `resources`.
        images: Where the image of the pod is looked up.
        console: Where findings are printed.
        pod: Whether to check from inside a pod too.
        as_json: Print a list of objects instead of lines.

    Raises:
        ClusterError: Runs would fail on something.
    """
    wrong = []
    records = []
    with phase(messages(console, as_json=as_json), "looking at the cluster"):
        for finding in _findings(config, images, pod):
            if finding.ok is False:
                wrong.append(finding.name)
            if as_json:
                said, cure = (None if text is None else redacted(text) for text in (finding.said, finding.cure))
                records.append({"name": finding.name, "ok": finding.ok, "found": said, "cure": cure})
                continue
            mark, colour = _MARKS[finding.ok]
            cure = f"; {finding.cure}" if finding.cure else ""
            said = redacted(" ".join(f"{finding.said}{cure}".split()))
            console.print(Text.assemble((mark, colour), f" {finding.name}: {said}"), soft_wrap=True)
    if as_json:
        console.out(json.dumps(records, indent=1, ensure_ascii=False), highlight=False)
    if wrong:
        raise ClusterError(f"to be fixed: {', '.join(dict.fromkeys(wrong))}: see the lines marked ✗")


def _findings(config: RunConfig, images: Images, pod: bool) -> Iterator[Finding]:
    yield from _pipelines()
    yield from _kubernetes(config, images, pod)
    yield from _here(config)


def _pipelines() -> Iterator[Finding]:
    try:
        kfp = connect()
        before = datetime.now(UTC)
        with explained("Kubeflow Pipelines"):
            health, _, headers = kfp._healthz_api.healthz_service_get_healthz_with_http_info()
    except ClusterError as error:
        yield Finding("Kubeflow Pipelines", False, str(error))
        return
    users = "several users" if health.multi_user else "one user"
    yield Finding("Kubeflow Pipelines", True, f"{os.environ[ENDPOINT]} answers, for {users}")
    if date := headers.get("Date"):
        yield from _clock("clock of Kubeflow Pipelines", skew(date, before))


def _kubernetes(config: RunConfig, images: Images, pod: bool) -> Iterator[Finding]:
    cluster = config.cluster
    try:
        api = Kubernetes()
        yield from installed.kubernetes(api)
    except Refused as error:
        yield Finding("Kubernetes", False, error.said, error.cure)
        return
    except KubernetesError as error:
        yield Finding("Kubernetes", False, str(error))
        return
    yield from _clock("clock of Kubernetes", api.skew)
    yield from looked_at("images", lambda: checks(config, images))
    deployments: list[Any] = []
    try:
        deployments = installed.deployments_of(api)
    except KubernetesError as error:
        yield _unseen("versions", error)
    else:
        yield from installed.versions(deployments, cluster)
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Argo's retries", lambda: installed.retries_of_argo(api, deployments)),
        ("Kueue's integrations", lambda: installed.integrations_of_kueue(api, cluster, deployments)),
        ("labels", lambda: profile.labels(api)),
        ("cluster.queue admission", lambda: profile.queue(api, cluster)),
        ("rights", lambda: _rights(api)),
    ]
    if pod:
        looks.append(("from a pod", lambda: probe(api, cluster, images.reference("cpu"))))
    for name, look in looks:
        yield from looked_at(name, look)


def looked_at(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. If Kubernetes refuses to answer, that is a finding too; any other error ends only this check."""
    try:
        yield from look()
    except KubernetesError as error:
        yield _unseen(name, error)
    except NGRPOError as error:
        yield Finding(name, False, str(error))


def _rights(api: Kubernetes) -> Iterator[Finding]:
    """Check whether this account may read what `ngrpo status` and `ngrpo logs` show."""
    missing = [
        f"{verb} {what}"
        for verb, what in (("list", "pods"), ("get", "pods/log"))
        if not api.may(verb, what, namespace())
    ]
    if missing:
        said = f"may not {' and '.join(missing)} in namespace {namespace()}"
        yield Finding("rights", None, said, "ask for that right: `ngrpo status` and `ngrpo logs` show less without it")
    else:
        yield Finding("rights", True, f"may list pods and read their logs in namespace {namespace()}")


def _here(config: RunConfig) -> Iterator[Finding]:
    """Check the store and MLflow from this machine, where runs are planned, if its variables name them."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    named = {
        "NGRPO_STORE": config.cluster.store
        if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")
        else None,
        "MLFLOW_TRACKING_URI": tracking if tracking.startswith(("http://", "https://")) else None,
        ENDPOINT: None,  # checked already
    }
    with environment(named):
        for each in reached():
            yield Finding(f"{each.name} from here", each.ok, each.said)
    if named["NGRPO_STORE"] is None:
        yield Finding(
            "store from here", None, "no AWS_* variables are set", "`ngrpo submit` needs them: it plans from here"
        )


def _clock(name: str, ahead: float | None) -> Iterator[Finding]:
    if ahead is None:
        return
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) > CLOCK_SECONDS:
        cure = "let NTP set the clocks of the cluster's nodes, and of this machine: S3 refuses requests that are 15 minutes off"
        yield Finding(name, False, said, cure)
    else:
        yield Finding(name, True, said)


def _unseen(name: str, error: KubernetesError) -> Finding:
    if isinstance(error, Refused):
        return Finding(name, None, f"not looked: {error.said}", error.cure)
    return Finding(name, None, f"not looked: {error}")
