r"""The process that compares answers, one request at a time, isolated from its parent and the machine.

`ngrpo.grading.pool` starts it. It imports what it needs, puts up the walls of `ngrpo.grading.sandbox`, and only then reads the first
answer. An answer that makes the parser or the algebra loop forever ends this process and not the run: the kernel kills it when the time
limit of a request is over.

A message is JSON after its length in bytes, as four bytes, most significant first. The first one from here is the list of walls
that are missing. A request is (nonce, gold, answer or none), its reply (nonce, verdict, error or none). A request to search is
(nonce, `SEARCH`, pattern, text), its reply (nonce, spans, error or none). A request to judge a solution of Countdown is (nonce,
`COUNTDOWN`, gold, answer).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from ngrpo.grading.countdown import solves
from ngrpo.grading.patterns import search

Respond = Callable[[str, str | None], tuple[bool, str | None]]

HEADER = struct.Struct(">I")

SEARCH, COUNTDOWN = "search", "countdown"

_OTHERS: dict[str, Callable[[str, str], tuple[object, str | None]]] = {SEARCH: search, COUNTDOWN: solves}

LONGEST_ERROR = 300
"""Largest number of characters of an error."""

_MEMORY = 2**29
"""Largest address space in bytes: an answer such as 9^{9^9} must not use up the machine's memory within its time limit."""

_LATER = (
    "sympy.assumptions.wrapper",
    "sympy.concrete.delta",
    "sympy.discrete.recurrences",
    "sympy.matrices.expressions.applyfunc",
    "sympy.sets.handlers.add",
    "sympy.sets.handlers.functions",
    "sympy.sets.handlers.issubset",
    "sympy.sets.handlers.mul",
    "sympy.sets.handlers.power",
    "sympy.sets.setexpr",
)
"""Modules that sympy imports only on demand, for example for a function of a matrix; inside the sandbox nothing can be imported."""


def encode(message: object) -> bytes:
    """Return the bytes of a message."""
    # ASCII, because a lone surrogate, which an answer may contain, has no UTF-8 encoding.
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def load() -> Respond:
    """Import everything that judging any answer needs, and return the function that judges."""
    from ngrpo.grading.comparison import respond

    for name in _LATER:
        import_module(name)
    # Loads the grammar, which takes longer than a request and must not count towards one.
    respond("1", r"\frac{1}{2}")
    from ngrpo.grading import code_generators

    code_generators.disarm()
    return respond


def serve(respond: Respond, requests: int, replies: int, seconds: float) -> None:
    """Answer requests until the other end is closed.

    Args:
        respond: Judges an answer or, without an answer, checks whether the gold answer can be parsed.
        requests: Descriptor to read from.
        replies: Descriptor to write to.
        seconds: Wall-clock limit of one request.
    """
    while (message := _receive(requests)) is not None:
        nonce, *request = message
        signal.setitimer(signal.ITIMER_REAL, seconds)
        found: tuple[object, str | None] = _OTHERS[request[0]](*request[1:]) if len(request) == 3 else respond(*request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(replies, [nonce, found[0], found[1] and found[1][:LONGEST_ERROR]])


def send(descriptor: int, message: object) -> None:
    """Write a whole message."""
    rest = memoryview(encode(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _receive(descriptor: int) -> Any | None:
    """Read a whole message; None if there are no more."""
    header = _read(descriptor, HEADER.size)
    if header is None:
        return None
    body = _read(descriptor, HEADER.unpack(header)[0])
    return None if body is None else json.loads(body)


def _read(descriptor: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(descriptor, size)
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def prepare() -> None:
    """Set up signals and the memory limit, before anything else is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # when the parent is interrupted, it closes the pipe
    # The default action of an alarm ends the process even inside a C function. Dispositions and masks are inherited, so reset them.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = _MEMORY if allowed == resource.RLIM_INFINITY else min(_MEMORY, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (memory, allowed))
    logging.disable(logging.CRITICAL)


def main() -> None:
    """Import, put up the walls, and serve: `python -m ngrpo.grading.worker REQUESTS REPLIES SECONDS`."""
    prepare()
    from ngrpo.grading import sandbox

    requests, replies, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    respond = load()
    send(replies, sandbox.seal(keep=(requests, replies)))
    with suppress(BrokenPipeError):
        serve(respond, requests, replies, seconds)
    os._exit(0)  # the normal exit of the interpreter would do what the walls forbid


if __name__ == "__main__":
    main()
