"""A grading worker taken over by an answer, and its attacks: as a worker of the pool with all walls, or alone with one wall.

As a worker: `python -m evil_worker REQUESTS REPLIES SECONDS`; of a request, the gold answer names an attack on the parent and the
answer is its argument. With one wall: `python -m evil_worker alone WALL ATTACK FOLDER`; it prints what came of the attack.
"""

import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

from ngrpo.grading import sandbox
from ngrpo.grading import worker as grading_worker

# --- attacks on the machine, each of which needs no more than to run in the worker -------------------------------------


def run_code(folder):
    exec(f"open({str(folder / 'canary')!r}, 'w').close()")


def run_code_without_a_trace(folder):
    """Code that touches nothing: only what watches Python itself can see it."""
    exec("1 + 1")


def hypergeometric_sum(folder):
    """Ordinary algebra: sympy writes a function for the terms of a sum, with the names of its symbols, and runs it."""
    from sympy import Rational, Sum, Symbol, oo

    spelled = "+".join(f"chr({ord(character)})" for character in f"open({str(folder / 'canary')!r},'w').close()")
    base, n = Symbol(f")\rexec({spelled}"), Symbol("n")
    expression = Sum(base**n, (n, 0, oo))
    try:
        expression.evalf()
    except (SyntaxError, TypeError, ValueError, NotImplementedError) as error:
        print(type(error).__name__)
    _expect(folder / "canary")
    return Rational(1)


def parse_python(folder):
    """`sympify` of a text evaluates it."""
    from sympy import sympify

    sympify(f"open({str(folder / 'canary')!r}, 'w').close()")


def read_a_file(folder):
    assert (folder / "secret").read_text() == "secret"


def write_a_file(folder):
    (folder / "canary").write_text("x")


def write_to_an_open_file(folder):
    os.write(OPEN_FILE, b"x")
    assert (folder / "open").stat().st_size


def remove_a_file(folder):
    os.unlink(folder / "secret")


def open_a_socket(folder):
    import socket

    socket.socket().close()


def start_a_process(folder):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def start_a_program(folder):
    """Without the audit events that `subprocess` raises by itself: what is below it raises none."""
    import subprocess

    sys.audit = lambda *_event: None
    subprocess.run(["/bin/sh", "-c", f"> {folder / 'canary'}"], check=True)
    _expect(folder / "canary")


def read_the_environment_of_the_parent(folder):
    assert Path(f"/proc/{os.getppid()}/environ").read_bytes()


def signal_the_parent(folder):
    os.kill(os.getppid(), 0)


def call_libc(folder):
    import ctypes

    assert ctypes.CDLL(None).getpid() > 0


def import_a_module(folder):
    import this_is_imported_late  # noqa: F401


def load_a_pickle(folder):
    pickle.loads(b"cposix\ngetpid\n(tR.")


# --- attacks on the parent, through the pipe ---------------------------------------------------------------------------


def environment(_argument):
    return False, json.dumps(dict(os.environ))[:300]


def send_bytes(argument):
    os.write(REPLIES, bytes.fromhex(argument))
    time.sleep(60)


def send_json(argument):
    message = argument.replace("NONCE", NONCE).encode()
    os.write(REPLIES, grading_worker.HEADER.pack(len(message)) + message)
    time.sleep(60)


def reply_and_more(_argument):
    """Send a right reply, and after it one to what may come next; it comes when the parent has heard the first."""
    grading_worker.send(REPLIES, [NONCE, True, None])
    time.sleep(0.3)
    grading_worker.send(REPLIES, [NONCE, True, None])
    time.sleep(60)


def watched_exec(_argument):
    sandbox.watch()
    exec("1 + 1")


def ignore_the_alarm(_argument):
    signal.setitimer(signal.ITIMER_REAL, 0)
    while True:
        time.sleep(1)


def _expect(path):
    assert path.exists()


WALLS = {
    "none": lambda: None,
    "descriptors": lambda: sandbox.close_descriptors({PRINTED}),
    "imports": sandbox.refuse_imports,
    "limits": sandbox.take_limits,
    "kernel": lambda: print(sandbox.filter_system_calls() or "", end=""),
    "watch": sandbox.watch,
    "no generators": lambda: __import__("ngrpo.grading.code_generators", fromlist=["disarm"]).disarm(),
}


def alone(wall, attack, folder):
    """Put up one wall, attack, and tell."""
    global OPEN_FILE, PRINTED
    import ctypes  # noqa: F401 - what the attacks need is loaded, as it may be in a worker
    import socket  # noqa: F401
    import subprocess  # noqa: F401

    if attack in ("hypergeometric_sum", "parse_python"):
        import sympy  # noqa: F401
    PRINTED = os.dup(1)
    OPEN_FILE = os.open(folder / "open", os.O_WRONLY | os.O_CREAT)
    WALLS[wall]()
    try:
        globals()[attack](folder)
    except (OSError, ImportError, NotImplementedError, AssertionError, ValueError) as error:
        outcome = f"stopped by {type(error).__name__}"
    else:
        outcome = "succeeded"
    os.write(PRINTED, outcome.encode())
    os._exit(0)


def respond(gold, answer):
    return globals()[gold](answer)


def main():
    global REPLIES, NONCE
    REPLIES = int(sys.argv[2])
    receive = grading_worker._receive

    def spy(descriptor):
        global NONCE
        message = receive(descriptor)
        NONCE = message[0] if message else ""
        return message

    grading_worker._receive = spy
    grading_worker.prepare()
    grading_worker.send(REPLIES, [])
    grading_worker.serve(respond, int(sys.argv[1]), REPLIES, float(sys.argv[3]))


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        alone(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    main()
