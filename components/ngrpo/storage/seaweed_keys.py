"""Generate the keys of a SeaweedFS server at each start; its internal ports refuse clients without them.

The S3 port requires credentials. The internal ports (filer, volumes, master, administration) are open unless the server has keys: to sign
the tokens with which its services read and write chunks over HTTP, and a certificate for mutual TLS over gRPC.
`python -m ngrpo.storage.seaweed_keys DIRECTORY` generates them for a server that is started in another way.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import sys
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ngrpo.storage.whole_files import written_whole

_TOKENS = ("signing", "filer_signing")
_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client", "mq", "msg_broker", "msg_agent")
_VALID_FOR = datetime.timedelta(days=3650)


def write_keys(directory: Path) -> None:
    """Write `security.toml`, `certificate.pem` and `key.pem`, readable only by the owner, replacing those of an earlier start.

    The server must be started in this directory, where it looks for `security.toml`, whose paths are relative.

    Raises:
        OSError: The files cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    settings = {
        "jwt": {name: {"key": secrets.token_hex(32), "read": {"key": secrets.token_hex(32)}} for name in _TOKENS},
        "grpc": {"ca": "certificate.pem", **{part: {"cert": "certificate.pem", "key": "key.pem"} for part in _PARTS}},
    }
    files = {
        "certificate.pem": _certificate(key).public_bytes(Encoding.PEM),
        "key.pem": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "security.toml": tomli_w.dumps(settings).encode(),
    }
    for name, content in files.items():
        with written_whole(directory / name) as partial:
            partial.write_bytes(content)


def _certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return a self-signed certificate that serves as authority, server and client certificate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ngrpo object store")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID_FOR)  # still valid if the clock is set back while the server runs
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]),
            critical=False,
        )
        .sign(key, SHA256())
    )


if __name__ == "__main__":
    write_keys(Path(sys.argv[1]))
