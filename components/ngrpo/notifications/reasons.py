"""Reasons of failures, without data that must not leave the machine."""

from __future__ import annotations

from ngrpo.environment import redacted
from ngrpo.errors import ConfigError, NGRPOError, Preempted, StoreError, TrackingError

_SHAREABLE = (ConfigError, StoreError, TrackingError, Preempted)
"""Errors whose text names only settings, addresses and services. The text of other errors may quote data."""


def reason_of(error: BaseException) -> str:
    """Return the reason of a failure in a form that may leave the machine.

    An error of the data, of a user's function, of an engine or of a library may quote a prompt or an answer, so only its type is named.
    """
    if isinstance(error, _SHAREABLE):
        return redacted(str(error))
    kind = type(error).__name__
    what = (type(error).__doc__ or "").partition("\n")[0] if isinstance(error, NGRPOError) else ""
    return f"{kind}: {what} Its message is in the log: it may quote data." if what else f"{kind}; see the log"
