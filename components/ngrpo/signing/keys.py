"""Elliptic-curve keys in PEM form, read from a file or an environment variable. No message contains private key material."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ngrpo.config.signing import PASSWORD, SigningConfig
from ngrpo.errors import ConfigError

CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
"""The curves that OpenSSF model signing supports, with their names in OpenSSL's options."""
_LIBRARY = ("model_signing", "OpenSSL", "securesystemslib")
"""Modules that signing and verification import."""
_MAKE = "make one with `openssl ecparam -name prime256v1 -genkey -noout` (docs/signing.md)"
_MAKE_PUBLIC = "make one with `openssl pkey -pubout` (docs/signing.md)"


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are verified with."""

    key: EllipticCurvePublicKey

    @property
    def pem(self) -> bytes:
        """The key as `openssl pkey -pubout` writes it."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self) -> str:
        """The sha256 of `pem`, by which OpenSSF model signing names a key."""
        return hashlib.sha256(self.pem).hexdigest()


@dataclass(frozen=True)
class PrivateKey:
    """A key that models are signed with."""

    key: EllipticCurvePrivateKey

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        return PublicKey(self.key.public_key())

    def pem(self) -> bytes:
        """Return the unencrypted key, for a library that accepts nothing else. Never write it to a file."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def private_key(config: SigningConfig, variable: Callable[[str], str | None]) -> PrivateKey | None:
    """Return the key that promotion signs with; None if the settings name no key.

    Args:
        config: The settings.
        variable: Returns the value of an environment variable.

    Raises:
        ConfigError: The signing library is missing, there is no such file or variable, it holds no private key on a supported curve,
            or its password is missing or wrong.
    """
    if config.private_key is None:
        return None
    require_library("signing.private_key")
    where = f"signing.private_key: {config.private_key}"
    name = config.key_variable
    if name is not None:
        text = variable(name)
        if not text:
            raise ConfigError(f"{where}: the variable is not set; put the key into it, on a cluster by cluster.secrets")
        pem = text.encode(errors="surrogateescape")
    else:
        pem = _read(Path(config.private_key), where)
    password = variable(PASSWORD)
    try:
        key = load_pem_private_key(pem, password.encode(errors="surrogateescape") if password else None)
    except TypeError as error:  # cryptography's error for a missing password, or one for a key that is not encrypted
        said = f"not encrypted; unset {PASSWORD}" if password else f"encrypted; put its password into {PASSWORD}"
        raise ConfigError(f"{where}: the key is {said}") from error
    except (ValueError, UnsupportedAlgorithm):
        what = "empty" if not pem.strip() else "no private key in PEM form"
        cure = f"correct {PASSWORD}, or {_MAKE}" if b"ENCRYPTED" in pem else _MAKE
        # Not chained: the library's message may contain bytes of the key.
        raise ConfigError(f"{where}: {'the password is wrong' if b'ENCRYPTED' in pem else what}; {cure}") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"{where}: no elliptic key; {_MAKE}")
    _require_curve(key.curve.name, where)
    return PrivateKey(key)


def public_key(pem: str | bytes, where: str) -> PublicKey:
    """Return a key that verifies signatures.

    Args:
        pem: Its text.
        where: The setting or file that it comes from, for the error.

    Raises:
        ConfigError: It is not a public key on a supported curve.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            f"{where}: this is a private key; name the public one, which `openssl pkey -pubout` makes of it"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "empty" if not data.strip() else "no public key in PEM form"
        raise ConfigError(f"{where}: {what}; {_MAKE_PUBLIC}") from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(f"{where}: no elliptic key; {_MAKE}")
    _require_curve(key.curve.name, where)
    return PublicKey(key)


def read_public_key(path: Path, where: str) -> PublicKey:
    """Return the key in a file; see `public_key`.

    Raises:
        ConfigError: The file cannot be read, or holds no such key.
    """
    return public_key(_read(path, where), where)


def require_library(what: str) -> None:
    """Check that the library for signing is installed, without importing it, which takes a second.

    Args:
        what: The setting, option or command that needs it.

    Raises:
        ConfigError: It is not installed.
    """
    for module in _LIBRARY:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{what} needs {module}, which is not installed: pip install 'ngrpo[signing]'")


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); name a PEM file") from error


def _require_curve(curve: str, where: str) -> None:
    if curve not in CURVES:
        raise ConfigError(f"{where}: a key of the curve {curve}, but known are {', '.join(CURVES.values())}; {_MAKE}")
