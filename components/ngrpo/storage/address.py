"""Addresses in object storage and file names: only forms that every reader understands in the same way."""

from __future__ import annotations

import re

from ngrpo.errors import StoreError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_LONGEST_NAME = 900
"""Bytes. S3 allows 1024 for a key, and prefix, stage and key come before a file's name."""


def parse_address(uri: str, what: str = "object store") -> tuple[str, str]:
    """Return bucket and prefix of `s3://bucket/prefix`; the prefix may be empty.

    Parts that some readers cut off or decode are refused: `?query`, `#fragment`, `%20`, user information, spaces.

    Args:
        uri: The address; one slash at its end is ignored.
        what: What the address is of, for the error.

    Raises:
        StoreError: It is not an address, or readers could differ about it.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.removesuffix("/")
    problem = None
    if scheme != "s3" or not separator:
        problem = "expected s3://bucket/prefix"
    elif "@" in bucket:
        problem = "user information does not belong in it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif not _BUCKET.fullmatch(bucket):
        problem = "expected s3://bucket/prefix, with letters, digits, dots, dashes and underscores in the bucket's name"
    elif prefix:
        forbidden = next((character for character in prefix if character in "?#%" or character.isspace()), None)
        problem = f"{forbidden!r} may not be in it" if forbidden is not None else path_problem(prefix)
    if problem is not None:
        # The address may contain a password.
        raise StoreError(f"{what} {re.sub(r'//[^/]*@', '//', uri)!r}: {problem}; write s3://bucket/prefix")
    return bucket, prefix


def path_problem(name: str) -> str | None:
    """Say why a relative path is unfit to name a file of an artifact; none if it is fit."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "a part of it is empty, `.` or `..`"
    if "\\" in name or not name.isprintable():
        return "it has a backslash or a character that cannot be printed"
    if len(name.encode()) > _LONGEST_NAME:
        return f"it is longer than {_LONGEST_NAME} bytes"
    return None
