r"""The process that compares answers, one request at a time, with nothing of the parent in it.

It is started as a script by `ngrpo.evaluation.math_verify_pool` and of ours imports only what compares two answers. An answer that
sends the parser or the algebra into an endless loop ends the process, not the run: the kernel kills it when the time for one request
is over.
"""

from __future__ import annotations

import logging
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

_MEMORY = 2**29
"""Bytes of address space: an answer such as 9^{9^9} must not take the machine's memory within its time."""


def serve(requests: Connection, seconds: float) -> None:
    """Answer requests until the other end is closed.

    Args:
        requests: Sends (gold, answer or none), receives (verdict, error); the first thing sent back says that all is loaded.
        seconds: Wall-clock limit of one request.
    """
    from ngrpo.evaluation.comparison import respond  # not at the top: the parent imports this module for its path

    # Loading sympy and the grammar takes longer than a request and must not count as one.
    respond("1", r"\frac{1}{2}")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        requests.send(None)
        while True:
            gold, answer = requests.recv()
            signal.setitimer(signal.ITIMER_REAL, seconds)
            response = respond(gold, answer)
            signal.setitimer(signal.ITIMER_REAL, 0)
            requests.send(response)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes the connection
    # The default action of an alarm ends the process even inside a C function; dispositions and masks are inherited.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = _MEMORY if allowed == resource.RLIM_INFINITY else min(_MEMORY, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (memory, allowed))
    logging.disable(logging.CRITICAL)
    serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
