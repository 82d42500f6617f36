"""Delivers events to webhooks, so that no receiver can delay or fail what it is told of."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ngrpo.config.notifications import NotificationConfig
from ngrpo.notifications.events import Event
from ngrpo.notifications.messages import TemplateError, payload

_PAUSE_SECONDS = 1.0
"""Before the second try."""
_BUSY = (429, 500, 502, 503, 504)
"""Answers after which a second try may succeed."""


def announce(settings: Mapping[str, NotificationConfig], event: Event) -> None:
    """Tell of an event whoever wants to know; return after the longest `timeout` of those at the latest.

    A receiver that is down, answers with an error, redirects, hangs or never stops to send costs one line on standard error, without its
    address, and nothing else. Each delivery has a thread of its own: no timeout of a socket ends a server that sends a byte a second. A
    thread that is still at work when its time is over is left to itself and ends with the process.

    Args:
        settings: `RunConfig.notifications`.
        event: What happened.
    """
    wanted = {name: each for name, each in settings.items() if event.kind in each.on}
    problems: dict[str, str | None] = {}

    def deliver(name: str, each: NotificationConfig) -> None:
        problems[name] = _deliver(each, event, time.monotonic() + each.timeout)

    began = time.monotonic()
    threads = {
        name: threading.Thread(target=deliver, args=(name, each), name=f"notification {name}", daemon=True)
        for name, each in wanted.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, began + wanted[name].timeout - time.monotonic()))
        problem = problems.get(name, f"no answer within {wanted[name].timeout:g} s; see notifications.{name}.timeout")
        if problem is not None:
            print(f"notification {name}: {event.kind} was not delivered: {problem}", file=sys.stderr, flush=True)


def not_set(settings: Mapping[str, NotificationConfig]) -> list[str]:
    """Return a line for each webhook whose address the environment does not have."""
    return [
        f"notification {name}: {_missing(each)}" for name, each in settings.items() if not os.environ.get(each.url_from)
    ]


def _missing(settings: NotificationConfig) -> str:
    return f"the environment variable {settings.url_from} is not set: export it with the address of the webhook"


def _deliver(settings: NotificationConfig, event: Event, deadline: float) -> str | None:
    """Tell one receiver; return why it was not told, none if it was."""
    address = os.environ.get(settings.url_from)
    if not address:
        return _missing(settings)
    if _scheme(address) not in ("https", "http"):
        return f"{settings.url_from} holds no address of a webhook: it begins with https://"
    try:
        body = payload(settings, event)
    except TemplateError as error:
        return str(error)
    problem, again = _post(address, body, deadline)
    if problem is not None and again and deadline - time.monotonic() > 2 * _PAUSE_SECONDS:
        time.sleep(_PAUSE_SECONDS)
        problem, _ = _post(address, body, deadline)
    return problem


def _scheme(address: str) -> str:
    try:
        return urlsplit(address).scheme
    except ValueError:
        return ""


def _post(address: str, body: bytes, deadline: float) -> tuple[str | None, bool]:
    """Send a request; return what is wrong with the answer, none if nothing is, and whether another try makes sense.

    What a library says of a failure names the address, so only the kind of the failure is told. The answer's body is not read.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "ngrpo"}
    try:
        request = Request(address, data=body, headers=headers, method="POST")
        with build_opener(_NoRedirect).open(request, timeout=max(0.1, deadline - time.monotonic())):
            return None, False
    except HTTPError as error:
        error.close()
        hint = " (a redirect is not followed: it could lead anywhere)" if 300 <= error.code < 400 else ""
        return f"the receiver answered with {error.code}{hint}", error.code in _BUSY
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        late = isinstance(cause, TimeoutError)
        return f"the receiver cannot be reached ({type(cause).__name__})", not late and isinstance(cause, OSError)


class _NoRedirect(HTTPRedirectHandler):
    """Makes an error of an answer that sends the request elsewhere: the event, and a token in its address, are for nobody else."""

    def redirect_request(self, *request: Any) -> None:
        """Send nothing."""
