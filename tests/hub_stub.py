"""A stand-in for the Hugging Face hub: makes repositories and keeps what is committed to them. Nothing of the real hub is called."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the hub was told."""

    def __init__(self) -> None:
        self.address = ""
        self.tokens: set[str | None] = set()
        self.made: list[dict] = []
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []
        """Repository, message and files of each commit."""
        self.refuses = False


@contextmanager
def hub_stub() -> Iterator[Hub]:
    """Serve one on this machine while the context is open."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            hub.tokens.add(self.headers["Authorization"])
            if hub.refuses:
                self._answer(403, {"error": "not yours"})
            elif self.path == "/api/repos/create":
                hub.made.append(json.loads(body))
                self._answer(200, {"url": f"{hub.address}/org/name"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self._answer(200, {"files": modes})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                hub.commits.append((repository, lines[0]["value"]["summary"], files))
                self._answer(200, {"commitUrl": f"{hub.address}/{repository}/commit/1", "commitOid": "1" * 40})
            else:
                self._answer(200, {})

        def do_GET(self) -> None:
            self._answer(404, {"error": "nothing here"})

        def _answer(self, code: int, content: dict) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
