"""Validate `s3://` addresses and file names: only forms that all tools interpret in the same way are accepted."""

from __future__ import annotations

import re

from ngrpo.errors import StoreError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_LONGEST_NAME = 900
"""Limit in bytes. S3 allows 1024 for an object key, which also contains prefix, stage and key."""


def parse_address(uri: str, what: str = "object store") -> tuple[str, str]:
    """Return bucket and prefix of `s3://bucket/prefix`; the prefix may be empty.

    Parts that some tools strip or decode are refused: `?query`, `#fragment`, `%20`, user information, spaces.

    Args:
        uri: The address; one trailing slash is ignored.
        what: What the address refers to, for the error.

    Raises:
        StoreError: The address is invalid or ambiguous.
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
        problem = f"{forbidden!r} is not allowed in it" if forbidden is not None else path_problem(prefix)
    if problem is not None:
        # The address may contain a password.
        raise StoreError(f"{what} {re.sub(r'//[^/]*@', '//', uri)!r}: {problem}; write s3://bucket/prefix")
    return bucket, prefix


def path_problem(name: str) -> str | None:
    """Return why a relative path cannot name a file of an artifact, or None if it can."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "a part of it is empty, `.` or `..`"
    if "\\" in name or not name.isprintable():
        return "it has a backslash or a character that cannot be printed"
    if len(name.encode()) > _LONGEST_NAME:
        return f"it is longer than {_LONGEST_NAME} bytes"
    return None
