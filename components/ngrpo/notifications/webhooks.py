"""Delivers events to webhooks. A receiver cannot make a run fail, and delays it by its timeout at most."""

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
"""Wait before the second try."""
_BUSY = (429, 500, 502, 503, 504)
"""HTTP statuses after which a second try may succeed."""


def announce(settings: Mapping[str, NotificationConfig], event: Event) -> None:
    """Deliver an event to all webhooks that subscribe to its kind; return within the longest `timeout` of these.

    If a receiver is down, answers with an error, redirects, hangs or never stops sending, one line is printed to standard error, without
    its address. Each delivery has its own thread, because a socket's timeout does not stop a server that sends a byte a second. A thread
    that exceeds its time is abandoned and ends with the process.

    Args:
        settings: `RunConfig.notifications`.
        event: The event.
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
    """Return a line for each webhook whose address is missing from the environment."""
    return [
        f"notification {name}: {_missing(each)}" for name, each in settings.items() if not os.environ.get(each.url_from)
    ]


def _missing(settings: NotificationConfig) -> str:
    return f"the environment variable {settings.url_from} is not set: export it with the address of the webhook"


def _deliver(settings: NotificationConfig, event: Event, deadline: float) -> str | None:
    """Deliver an event to one receiver; return why that failed, None if it succeeded."""
    address = os.environ.get(settings.url_from)
    if not address:
        return _missing(settings)
    if _scheme(address) not in ("https", "http"):
        return f"{settings.url_from} is not the address of a webhook: set it to one that begins with https://"
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
    """Send a request; return what went wrong, None if nothing did, and whether another try makes sense.

    A library's error message contains the address, so only the type of the error is named. The body of the response is not read.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "ngrpo"}
    try:
        request = Request(address, data=body, headers=headers, method="POST")
        with build_opener(_NoRedirect).open(request, timeout=max(0.1, deadline - time.monotonic())):
            return None, False
    except HTTPError as error:
        error.close()
        hint = " (redirects are not followed: set the final address)" if 300 <= error.code < 400 else ""
        return f"the receiver answered with {error.code}{hint}", error.code in _BUSY
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        late = isinstance(cause, TimeoutError)
        return f"the receiver cannot be reached ({type(cause).__name__})", not late and isinstance(cause, OSError)


class _NoRedirect(HTTPRedirectHandler):
    """Turns a redirect into an error: neither the event nor a token in its address may reach another server."""

    def redirect_request(self, *request: Any) -> None:
        """Follow no redirect."""
