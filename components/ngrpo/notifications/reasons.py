"""Why something failed, as far as it may leave the machine."""

from __future__ import annotations

from ngrpo.environment import redacted
from ngrpo.errors import ConfigError, NGRPOError, Preempted, StoreError, TrackingError

_SHAREABLE = (ConfigError, StoreError, TrackingError, Preempted)
"""Errors whose text names settings, places and services. That of the others may quote data, or is not ours."""


def reason_of(error: BaseException) -> str:
    """Return why something failed, as far as it may leave the machine.

    An error of the data, of a function of the user's, of an engine or of a library may quote a prompt or an answer: of those only the
    kind is told.
    """
    if isinstance(error, _SHAREABLE):
        return redacted(str(error))
    kind = type(error).__name__
    what = (type(error).__doc__ or "").partition("\n")[0] if isinstance(error, NGRPOError) else ""
    return f"{kind}: {what} The log has its text, which may quote data." if what else f"{kind}; see the log"
