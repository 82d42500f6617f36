"""A receiver of webhooks on this machine, well-behaved or not."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET_PATH = "/hooks/T0-very-secret-path"


class Receiver:
    """What was received, and where."""

    def __init__(self, port: int):
        """Know the address."""
        self.url = f"http://127.0.0.1:{port}{SECRET_PATH}"
        self.bodies: list[bytes] = []

    @property
    def documents(self) -> list[dict]:
        """Return what was received, as JSON."""
        return [json.loads(body) for body in self.bodies]


@contextmanager
def receiver(manner: str = "good", elsewhere: str = "") -> Iterator[Receiver]:
    """Serve until the context ends.

    Args:
        manner: `good`; `500`; `once 500`, which is good the second time; `hangs`, which never answers; `drips`, whose headers never end;
            `body`, whose body never ends; `redirects`, to `elsewhere`.
        elsewhere: Where `redirects` leads.
    """
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            getattr(self, manner.replace(" ", "_") if not manner.isdigit() else f"_{manner}")()

        def good(self, code: int = 200) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def _500(self) -> None:
            self.good(500)

        def once_500(self) -> None:
            self.good(500 if len(told.bodies) == 1 else 202)

        def hangs(self) -> None:
            over.wait(30)

        def redirects(self) -> None:
            self.send_response(302)  # which would be followed; 307 would not
            self.send_header("Location", elsewhere)
            self.end_headers()

        def body(self) -> None:
            self.send_response(200)
            self.end_headers()
            self._for_ever(b"x" * 65536, 0.0)

        def drips(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            self._for_ever(b"x", 0.05)

        def _for_ever(self, data: bytes, pause: float) -> None:
            try:
                while not over.is_set():
                    self.wfile.write(data)
                    time.sleep(pause)
            except OSError:
                return

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told = Receiver(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield told
    finally:
        over.set()
        server.shutdown()
        server.server_close()
