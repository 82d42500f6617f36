"""Ways from this machine to services of a cluster: `kubectl port-forward`, started again whenever it ends."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ngrpo.errors import NGRPOError

SECONDS_TO_START = 30


@contextmanager
def reachable(address: str) -> Iterator[str]:
    """Provide an address of this machine for one of the cluster, `http://SERVICE.NAMESPACE.svc:PORT`; any other stays as it is.

    Raises:
        NGRPOError: The service does not answer through a port-forward.
    """
    parts = urlsplit(address)
    names = (parts.hostname or "").split(".")
    if len(names) < 3 or names[2] != "svc":
        yield address
        return
    service, namespace = names[:2]
    port, remote = _free_port(), parts.port or {"https": 443}.get(parts.scheme, 80)
    command = ["kubectl", "--namespace", namespace, "port-forward", f"service/{service}", f"{port}:{remote}"]
    stopped = threading.Event()
    thread = threading.Thread(target=_keep_running, args=(command, stopped), daemon=True)
    thread.start()
    try:
        _await(port, command)
        yield f"{parts.scheme}://127.0.0.1:{port}"
    finally:
        stopped.set()
        thread.join()


def _keep_running(command: list[str], stopped: threading.Event) -> None:
    """Run a command again and again: a port-forward ends with the pod that it leads to."""
    while not stopped.is_set():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not stopped.wait(0.5):
            pass
        process.terminate()
        process.wait()
        stopped.wait(0.5)


def _await(port: int, command: list[str]) -> None:
    for _ in range(2 * SECONDS_TO_START):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.5)
    raise NGRPOError(
        f"`{' '.join(command)}` does not lead anywhere: see what it says, and whether the service has a pod"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
