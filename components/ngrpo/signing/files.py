"""The signature over the files of a model, by OpenSSF model signing (https://github.com/sigstore/model-transparency).

It is a Sigstore bundle with the sha256 of every file. `python -m model_signing verify key` verifies it without ngrpo.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import InvalidSignature
from model_signing import hashing, manifest, signing, verifying
from model_signing._hashing.hashing import Digest

from ngrpo.signing.keys import PrivateKey, PublicKey

# What the library raises for an invalid bundle or a wrong signature.
_REFUSALS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, InvalidSignature)
_SHA256 = "sha256"
_OTHERS = 3


class BrokenSignatureError(Exception):
    """A signature does not hold; the message says why."""


def sign_files(model: Path, key: PrivateKey) -> bytes:
    """Return the signature over every file of a model directory, as `model.sig` holds it. The directory is not changed."""
    # By default the library ignores git's files; they are signed too.
    every_file = hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)
    with _as_path(key.pem()) as path, tempfile.TemporaryDirectory() as directory:
        config = signing.Config().use_elliptic_key_signer(private_key=path).set_hashing_config(every_file)
        file = Path(directory) / "model.sig"
        config.sign(model, file)
        return file.read_bytes()


def verify_files(files: Mapping[str, str], signature: bytes, key: PublicKey) -> None:
    """Verify that a signature covers exactly these files.

    Args:
        files: The sha256 of every file, by relative path (`ngrpo.storage.digest.file_digests`).
        signature: What `sign_files` returned.
        key: The key that must have signed them.

    Raises:
        BrokenSignatureError: It is not a valid signature, is by another key, or covers other files.
    """
    with tempfile.TemporaryDirectory() as directory:
        bundle, public = Path(directory) / "model.sig", Path(directory) / "key.pub"
        bundle.write_bytes(signature)
        public.write_bytes(key.pem)
        config = verifying.Config().use_elliptic_key_verifier(public_key=public)
        try:
            config.set_hashing_config(_KnownFiles(files)).verify(Path(directory), bundle)
        except _REFUSALS as error:
            raise BrokenSignatureError(_said(error, signature, files)) from error


def difference(signed: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Describe how files differ from the signed ones, both given as sha256 by path; None if they are equal."""
    changed = [name for name in signed if name in found and found[name] != signed[name]]
    kinds = {
        "changed": changed,
        "missing": [name for name in signed if name not in found],
        "added": [name for name in found if name not in signed],
    }
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names) or None


class _KnownFiles(hashing.Config):
    """Files with known digests, which the library compares with the signed ones."""

    def __init__(self, files: Mapping[str, str]):
        super().__init__()  # type: ignore[no-untyped-call]  # the library has no types
        self._files = files

    def hash(self, model_path: Any, *, files_to_hash: Iterable[Any] | None = None) -> manifest.Manifest:
        """Return the files, wherever they are."""
        kind = manifest.SerializationType.from_args(
            {"method": "files", "hash_type": _SHA256, "allow_symlinks": False, "ignore_paths": []}
        )
        items = [
            manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest(_SHA256, bytes.fromhex(sha256)))
            for name, sha256 in self._files.items()
        ]
        return manifest.Manifest("model", items, kind)


def _said(error: Exception, signature: bytes, files: Mapping[str, str]) -> str:
    """Return what is wrong with a signature in one line."""
    if str(error).startswith("Signature mismatch"):  # the signature is valid, but the files are others
        return f"other files than were signed ({difference(_signed(signature), files) or 'in another form'})"
    if isinstance(error, InvalidSignature):
        return "the signature is wrong: its content was changed"
    if str(error).startswith("Key mismatch"):
        return "it was made with another key"
    return f"no signature by OpenSSF model signing ({type(error).__name__})"


def _signed(signature: bytes) -> dict[str, str]:
    """Return the files in a bundle that was verified before."""
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}


def _listed(names: list[str]) -> str:
    others = len(names) - _OTHERS
    return ", ".join(sorted(names)[:_OTHERS]) + (f" and {others} more" if others > 0 else "")


@contextmanager
def _as_path(secret: bytes) -> Iterator[str]:
    """Provide a secret as the path of a pipe: the library reads keys from paths, and this one must not be written to a disk."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as end:
            end.write(secret)  # fits into the buffer of a pipe
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
