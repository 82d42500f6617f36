"""An S3 service that keeps only small objects, so that it takes almost no processor time on this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

KEPT_BYTES = 1 << 20
"""Larger bodies are read and dropped."""


class _Answers(BaseHTTPRequestHandler):
    """What uploading, listing and deleting need of the S3 API."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        self.objects[self._key()] = self._body()
        self._answer(200, headers={"ETag": '"0"'})

    def do_POST(self) -> None:
        begins = "uploads" in urlsplit(self.path).query
        self._body()
        self._answer(
            200,
            b"<InitiateMultipartUploadResult><UploadId>0</UploadId></InitiateMultipartUploadResult>"
            if begins
            else b"<CompleteMultipartUploadResult/>",
        )

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            prefix = query["prefix"][0]
            keys = (key.partition("/")[2] for key in sorted(self.objects))
            listed = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys if key.startswith(prefix))
            self._answer(200, f"<ListBucketResult>{listed}</ListBucketResult>".encode())
        elif self._key() in self.objects:
            self._answer(200, self.objects[self._key()], {"ETag": '"0"'})
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self.objects.pop(self._key(), None)
        self._answer(204)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _key(self) -> str:
        """Return `bucket/key`."""
        return unquote(urlsplit(self.path).path).lstrip("/")

    def _body(self) -> bytes:
        """Read the body, and return it if it is small."""
        length = int(self.headers.get("Content-Length", 0))
        if length <= KEPT_BYTES:
            return self.rfile.read(length)
        buffer = memoryview(bytearray(KEPT_BYTES))
        while length:
            length -= self.rfile.readinto(buffer[:length])
        return b""

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def discard() -> Iterator[dict[str, str]]:
    """Serve from a process of its own; yield the environment variables by which boto3 finds the service."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender,), daemon=True)
    process.start()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{receiver.recv()}",
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_SESSION_TOKEN": "",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.terminate()
        process.join()


def _serve(port: multiprocessing.connection.Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    port.send(server.server_port)
    server.serve_forever()
