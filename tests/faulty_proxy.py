"""A proxy for an S3 service that injects the faults of networks and services into single requests: cut, flip, refuse, delay, drop."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class Fault:
    """What is done to requests.

    Attributes:
        kind: `cut` half of the body, `flip` a bit of it, answer `status`, `drop` the connection before the request is forwarded,
            `lose` the answer to one that was forwarded, `delay` it, `strip` the conditions of a write.
        method: Of these requests.
        part: Text in their path.
        times: For so many of them; none for all.
        status: Status and code to answer.
        seconds: Of a delay.
    """

    kind: str
    method: str = ""
    part: str = ""
    times: int | None = 1
    status: tuple[int, str] = (500, "InternalError")
    seconds: float = 0.0
    done: int = 0

    def meets(self, method: str, path: str) -> bool:
        return self.method in ("", method) and self.part in path and self.times != self.done


@dataclass
class FaultyProxy:
    """The proxy; a test appends to `faults`.

    Attributes:
        url: Where it listens.
        faults: The first that meets a request is done to it.
        requests: Method and path of all requests so far.
        down_until: Connections are dropped until then (`time.monotonic`).
        refuses_checksums: Status and code for uploads in aws-chunked encoding.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    down_until: float = 0.0
    refuses_checksums: tuple[int, str] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, method: str = "", part: str = "", times: int | None = 1, **options: object) -> Fault:
        self.faults.append(Fault(kind, method, part, times, **options))
        return self.faults[-1]

    def down(self, seconds: float) -> None:
        self.down_until = time.monotonic() + seconds

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            if time.monotonic() < self.down_until:
                return Fault("drop")
            found = next((fault for fault in self.faults if fault.meets(method, path)), None)
            if found is not None:
                found.done += 1
            return found


@contextmanager
def faulty_proxy(upstream: str, certificate: Path | None = None) -> Iterator[FaultyProxy]:
    """Serve a proxy before a service.

    Args:
        upstream: Address of the service, `http://host:port`.
        certificate: Where to write the certificate (and its key) of a proxy that speaks TLS; none for one that does not.
    """
    proxy, target = FaultyProxy(), urlsplit(upstream).netloc

    class Handler(_Handler):
        def do(self) -> None:
            self.serve_one(proxy, target)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        _certify(certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    proxy.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        return True  # the answer comes with the rest, or never

    def serve_one(self, proxy: FaultyProxy, target: str) -> None:
        fault = proxy.fault(self.command, unquote(self.path))
        kind = "" if fault is None else fault.kind
        if kind == "drop":
            self.close_connection = True
            return
        if "100-continue" in self.headers.get("Expect", ""):
            self.send_response_only(100)
            self.end_headers()
        chunked = "aws-chunked" in self.headers.get("Content-Encoding", "") or "x-amz-trailer" in self.headers
        if chunked and proxy.refuses_checksums is not None:
            self._skip_body()  # or the client, which is still sending, sees no answer but a broken connection
            self._refuse(*proxy.refuses_checksums)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if kind == "delay":
            time.sleep(fault.seconds)
        if kind == "status":
            self._refuse(*fault.status)
            return
        dropped = _HOP | ({"if-match", "if-none-match"} if kind == "strip" else set())
        status, headers, content = _forward(self, target, body, lambda name: name.lower() not in dropped)
        if kind == "lose":
            self.close_connection = True
            return
        if kind == "flip" and content:
            content = (
                content[: len(content) // 2]
                + bytes([content[len(content) // 2] ^ 1])
                + content[len(content) // 2 + 1 :]
            )
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP and not (kind == "flip" and name.lower().startswith("x-amz-checksum")):
                self.send_header(name, value)
        self.end_headers()
        if kind == "cut":
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def _skip_body(self) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            self.rfile.read(size + 2)
        while self.rfile.readline().strip():
            pass

    def _refuse(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>a fault</Message></Error>".encode()
        self.close_connection = True  # the body of the request may not have been read
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _forward(
    request: BaseHTTPRequestHandler, target: str, body: bytes, wanted: Callable[[str], bool]
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(target, timeout=60)
    connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.items():
        if wanted(name):
            connection.putheader(name, value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    content = answer.read()
    headers = answer.getheaders()
    if request.command != "HEAD" and not any(name.lower() == "content-length" for name, _ in headers):
        headers.append(("Content-Length", str(len(content))))
    connection.close()
    return answer.status, headers, content


def _certify(path: Path) -> None:
    """Write a certificate for the loopback address, and its key, to one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
