"""Objects of an S3 service under one prefix, through boto3, with errors that say what to put right."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from ngrpo.errors import StoreError

_MISSING = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_FORBIDDEN = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "ExpiredToken"}
_BEYOND = {"InvalidRange", "416"}
_BROKEN = {"500", "InternalError"}
_CONFIG = Config(
    connect_timeout=3,
    read_timeout=60,
    retries={"total_max_attempts": 3, "mode": "standard"},
)
# One transfer; two files go at a time (see `ngrpo.storage.artifacts`). More threads take the time of the one that hashes.
_UPLOAD = TransferConfig(
    multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4, io_chunksize=1 << 20
)
_DOWNLOAD = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4, io_chunksize=1 << 20
)


class UnreadableError(StoreError):
    """The service answers, but an object is not there or cannot be read to its end."""


@dataclass(frozen=True)
class ObjectHead:
    """What a service says of an object: its size in bytes and the metadata that was stored with it."""

    size: int
    metadata: Mapping[str, str]


class _HashedFile:
    """A file that is hashed while it is written.

    It cannot seek, so boto3's transfer manager, which fetches parts side by side, writes them in their order.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


class ObjectStore:
    """Objects below `s3://bucket/prefix`. Endpoint and credentials come from the environment, as boto3 reads it."""

    def __init__(self, uri: str, client: Any = None):
        """Open a prefix; nothing is sent yet.

        Args:
            uri: `s3://bucket` or `s3://bucket/prefix`.
            client: A boto3 S3 client; by default one from the environment.

        Raises:
            StoreError: The address is not of that form, or the environment names no usable endpoint.
        """
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc:
            raise StoreError(f"object store {uri!r}: expected s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        with self._explained():
            try:
                # A session of its own: boto3's default one keeps the credentials that it saw first.
                self._client = client or boto3.session.Session().client("s3", config=_CONFIG)
            except ValueError as error:
                raise StoreError(
                    f"object store {self.uri}: {_endpoint()} is no address; write http://host:port or https://host"
                ) from error

    def check(self) -> None:
        """Make sure that the bucket can be reached.

        Raises:
            StoreError: It cannot; the message says whether address, credentials or bucket are to blame.
        """
        with self._explained():
            self._client.head_bucket(Bucket=self._bucket)

    def put_file(self, path: Path, key: str, *, metadata: Mapping[str, str] | None = None) -> None:
        """Upload a file, in parts where it is large.

        Args:
            path: The file.
            key: Its key below the prefix.
            metadata: Texts to store with the object (see `head`).
        """
        with self._explained():
            self._client.upload_file(
                str(path), self._bucket, self._key(key), ExtraArgs={"Metadata": dict(metadata or {})}, Config=_UPLOAD
            )

    def put_bytes(self, data: bytes, key: str, *, if_none_match: bool = False) -> bool:
        """Write a small object.

        Args:
            data: Its content.
            key: Its key below the prefix.
            if_none_match: Write only if there is no such object; of several writers one succeeds.

        Returns:
            Whether it was written.
        """
        return self._put(data, key, {"IfNoneMatch": "*"} if if_none_match else {}) is not None

    def swap(self, data: bytes, key: str, expected: str | None) -> str | None:
        """Replace a small object if it is still the one that was read: of several writers one succeeds.

        A refusal does not prove that another writer was faster: the client sends a request again whose answer was lost.

        Args:
            data: Its new content. Where content comes back, so does its ETag: let no two writes have the same.
            key: Its key below the prefix.
            expected: ETag of what it replaces (see `get_tagged`); none if there was no such object.

        Returns:
            The new ETag; none where the object is another one by now.
        """
        return self._put(data, key, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected})

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; none if there is no such object."""
        found = self.get_tagged(key)
        return None if found is None else found[0]

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Read a small object and its ETag; none if there is no such object."""
        with self._explained():
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
                return answer["Body"].read(), answer["ETag"]
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def read_blocks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        """Read an object block by block.

        Raises:
            UnreadableError: There is no such object, or it cannot be read to its end.
            StoreError: The service cannot be used.
        """
        with self._explained(), self._readable(key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            yield from body.iter_chunks(size)

    def get_range(self, key: str, start: int, length: int | None) -> bytearray | None:
        """Read a part of an object.

        Args:
            key: Its key below the prefix.
            start: First byte.
            length: Number of bytes, at least 1; none for all from `start` on.

        Returns:
            The bytes, fewer where the object ends; none if there is no such object.

        Raises:
            UnreadableError: It cannot be read to its end.
            StoreError: The service cannot be used.
        """
        span = f"bytes={start}-{'' if length is None else start + length - 1}"
        data = bytearray()
        with self._explained(), self._readable(key):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range=span)["Body"]
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                if _code(error) in _BEYOND:
                    return data
                raise
            for block in body.iter_chunks(1 << 20):
                data += block
        return data

    def get_file(self, key: str, path: Path) -> str:
        """Download an object to a file, in parts where it is large.

        Returns:
            The sha256 of what was written, in hexadecimal digits.

        Raises:
            UnreadableError: There is no such object, or it cannot be read to its end.
            StoreError: The service cannot be used, or the disk is full.
        """
        with self._explained(), self._readable(key):
            try:
                with path.open("wb") as file:
                    hashed = _HashedFile(file)
                    self._client.download_fileobj(self._bucket, self._key(key), hashed, Config=_DOWNLOAD)
                return hashed.sha256.hexdigest()
            except OSError as error:
                raise StoreError(
                    f"{self.uri}/{key}: cannot be written to {path} ({error.strerror}); make room"
                ) from error

    def head(self, key: str) -> ObjectHead | None:
        """Return what the service says of an object; none if there is no such object."""
        with self._explained():
            try:
                answer = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
        return ObjectHead(answer["ContentLength"], answer["Metadata"])

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys below the store's prefix that start with `prefix`, in order."""
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix) if prefix else f"{self._prefix}/" if self._prefix else ""
            )
            keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return [key[len(self._prefix) + 1 :] if self._prefix else key for key in keys]

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        with self._explained():
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def _put(self, data: bytes, key: str, condition: Mapping[str, str]) -> str | None:
        """Write a small object and return its ETag; none where the condition does not hold."""
        with self._explained():
            try:
                etag: str = self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, **condition)[
                    "ETag"
                ]
            except ClientError as error:
                # With If-Match, a missing object is a missing key.
                if _code(error) in _REFUSED or ("IfMatch" in condition and _code(error) in _MISSING):
                    return None
                raise
        return etag

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextmanager
    def _readable(self, key: str) -> Iterator[None]:
        """Tell an object that cannot be read from a service that cannot be used."""
        try:
            yield
        except (RetriesExceededError, IncompleteReadError, FlexibleChecksumError) as error:
            raise UnreadableError(f"{self.uri}/{key}: cannot be read to its end ({type(error).__name__})") from error
        except ClientError as error:
            if _code(error) in _MISSING:
                raise UnreadableError(f"{self.uri}/{key}: there is no such object") from error
            if _code(error) in _BROKEN:
                raise UnreadableError(
                    f"{self.uri}/{key}: cannot be read (the service answers {_code(error)})"
                ) from error
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn boto3's errors into one line with the cure. Credentials are never part of it."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StoreError(
                f"object store {self.uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except ClientError as error:
            raise StoreError(self._explain(_code(error))) from error
        except S3UploadFailedError as error:
            # The transfer manager keeps the service's answer only in its text.
            answer = re.search(r"An error occurred \((\w+)\)", str(error))
            raise StoreError(self._explain(answer[1] if answer else "upload failed")) from error
        except (NoConnectionError, HTTPClientError) as error:
            raise StoreError(
                f"object store {self.uri}: {_endpoint()} cannot be reached ({type(error).__name__}); start the service or "
                "correct the address"
            ) from error
        except BotoCoreError as error:
            raise StoreError(
                f"object store {self.uri}: {error}; correct the AWS_* variables or ~/.aws/config"
            ) from error

    def _explain(self, code: str) -> str:
        if code in _FORBIDDEN:
            return (
                f"object store {self.uri}: access refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the "
                "rights of that account"
            )
        if code in {"NoSuchBucket", "404"}:
            return (
                f"object store {self.uri}: there is no bucket {self._bucket!r}; create it or set NGRPO_STORE to another"
            )
        return f"object store {self.uri}: the service answered {code}; see its log"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _endpoint() -> str:
    """Return the variable that names the endpoint with its value, less a password that may be in it."""
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    value = os.environ.get(name) or "(not set)"
    return f"{name}={re.sub(r'//[^/]*@', '//', value)}"
