"""How a champion is deployed on a cluster, and when a deployment is kept: the section `deployment`, which is in no stage's key."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ngrpo.config.cluster import KubernetesName
from ngrpo.section import Flag, Section, number

ServiceName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
"""Becomes part of the host name that KServe gives a service."""


class DeploymentConfig(Section):
    """The `InferenceService` of KServe that `ngrpo serve --cluster` writes, and `ngrpo deploy` and the stage `deploy` apply."""

    after_promotion: Flag = False
    """Whether a run on a cluster deploys the model that it promoted: its last stage is then `deploy`."""
    token: KubernetesName | None = None
    """Secret with the token of the account that changes services in that stage; none uses the account of the pods, which then needs these
    rights."""
    name: ServiceName | None = None
    """Name of the service; none uses that of the registered model."""
    service_account: KubernetesName | None = None
    """Service account with KServe's secret for the object store; none uses `cluster.service_account`."""
    margin: Annotated[float, number(above=0.0, most=100.0)] = 5.0
    """In percentage points. A deployment is kept if, on every benchmark, the whole interval of the paired difference between endpoint and
    stage lies within this margin."""
    ready_minutes: Annotated[float, number(above=0.0, most=10_000.0)] = 60.0
    """Longest time until a deployment is ready."""
