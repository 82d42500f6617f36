"""A stand-in for the Hugging Face hub: makes repositories, takes large files by LFS, and keeps what is committed.

Nothing of the real hub is called. It does not speak Xet, which `HF_HUB_DISABLE_XET` switches off in the client.
"""

import base64
import hashlib
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
        self.public: set[str] = set()
        """Repositories that are there already and that anybody can read."""
        self.stored: dict[str, bytes] = {}
        """Large files by their sha256."""
        self.refusals: dict[str, int] = {}
        """Status code by a part of the path of the requests that are refused."""

    def refusal(self, path: str) -> int | None:
        """Return the code that a request is refused with; none if it is served."""
        return next((code for part, code in self.refusals.items() if part in path), None)


@contextmanager
def hub_stub() -> Iterator[Hub]:
    """Serve one on this machine while the context is open."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            hub.tokens.add(self.headers["Authorization"])
            refused = hub.refusal(self.path)
            if refused is not None:
                self._answer(refused, {"error": "not yours"})
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in hub.public:
                    self._answer(409, {"error": "You already created this model repo", "url": f"{hub.address}/{name}"})
                    return
                hub.made.append(asked)
                self._answer(200, {"url": f"{hub.address}/{name}"})
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
                files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
                self._answer(200, {"files": files})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    each | {"actions": {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self._answer(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                large = [line["value"] for line in lines if line["key"] == "lfsFile"]
                files |= {file["path"]: hub.stored[file["oid"]] for file in large}
                repository = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                hub.commits.append((repository, lines[0]["value"]["summary"], files))
                self._answer(200, {"commitUrl": f"{hub.address}/{repository}/commit/1", "commitOid": "1" * 40})
            else:
                self._answer(200, {})

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            refused = hub.refusal(self.path)
            if refused is None:
                hub.stored[hashlib.sha256(data).hexdigest()] = data
            self._answer(refused or 200, {})

        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/")
            there = name in hub.public or name in {f"{made['organization']}/{made['name']}" for made in hub.made}
            if there and not hub.refusal(self.path):
                self._answer(200, {"id": name, "private": name not in hub.public, "tags": [], "siblings": []})
            else:
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
