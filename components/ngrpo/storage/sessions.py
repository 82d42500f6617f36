"""Sessions of boto3 that share what is known of the services."""

from __future__ import annotations

from functools import cache

import boto3
import botocore.session
from botocore.loaders import Loader


@cache
def _descriptions() -> Loader:
    """Return what botocore knows of the services: it would read megabytes of JSON, a tenth of a second, for every session."""
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader


def new_session() -> boto3.session.Session:
    """Return a session of its own: boto3's default one keeps the credentials that it saw first."""
    session = botocore.session.Session()
    ours = boto3.session.Session(botocore_session=session)
    session.register_component("data_loader", _descriptions())
    return ours
