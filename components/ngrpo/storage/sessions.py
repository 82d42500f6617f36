"""boto3 sessions that share botocore's service descriptions."""

from __future__ import annotations

from functools import cache

import boto3
import botocore.session
from botocore.loaders import Loader


@cache
def _descriptions() -> Loader:
    """Return a shared loader of service descriptions; each session would otherwise parse megabytes of JSON, which takes 0.1 s."""
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader


def new_session() -> boto3.session.Session:
    """Return a new session; boto3's default session keeps the first credentials that it read."""
    session = botocore.session.Session()
    ours = boto3.session.Session(botocore_session=session)
    session.register_component("data_loader", _descriptions())
    return ours
