"""Read and write the objects under a prefix of an S3 service with boto3; retries temporary faults, and raises errors that name the cure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ngrpo.errors import StoreError
from ngrpo.storage.address import parse_address
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.patience import PATIENCE, PatientSender
from ngrpo.storage.service_faults import (
    BEYOND_THE_END,
    CONDITION_FAILED,
    FAULTS,
    MISSING,
    NoSuchObjectError,
    code_of,
    endpoint,
    fault_of,
)
from ngrpo.storage.sessions import new_session

T = TypeVar("T")

_CONFIG = Config(
    connect_timeout=3,
    read_timeout=60,
    retries={"total_max_attempts": 3, "mode": "standard"},
)
# Per transfer; two run in parallel (see `ngrpo.storage.inspection`). More threads would slow down hashing.
_UPLOAD = TransferConfig(
    multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4, io_chunksize=1 << 20
)
_DOWNLOAD = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4, io_chunksize=1 << 20
)


@dataclass(frozen=True)
class ObjectHead:
    """Size in bytes and metadata of an object."""

    size: int
    metadata: Mapping[str, str]


class _HashedFile:
    """A file that is hashed while it is written.

    Because it cannot seek, boto3's transfer manager, which fetches parts in parallel, writes them in order.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def _client() -> Any:
    """Return an S3 client that is configured by the environment."""
    return new_session().client("s3", config=_CONFIG)


class ObjectStore:
    """Objects below `s3://bucket/prefix`. Endpoint and credentials come from the environment, as boto3 reads it."""

    def __init__(self, uri: str, client: Any = None, *, patience: float = PATIENCE, proven: bool = False):
        """Open a prefix without sending a request.

        Args:
            uri: `s3://bucket` or `s3://bucket/prefix`.
            client: A boto3 S3 client; by default one that is configured by the environment.
            patience: Seconds to retry while the service cannot be reached.
            proven: Whether the parent process has reached the service; if so, even the first request is retried.

        Raises:
            StoreError: The address is invalid, or the environment has no usable endpoint.
        """
        self._bucket, self._prefix = parse_address(uri)
        self.uri = uri.rstrip("/")
        try:
            self._client = client or _client()
        except ValueError as error:
            raise StoreError(
                f"object store {self.uri}: {endpoint()} is not a valid address; write http://host:port or https://host"
            ) from error
        except BotoCoreError as error:
            raise fault_of(error, self.uri) from error
        self._sender = PatientSender(self.uri, self._answers, seconds=patience, proven=proven)

    def check(self) -> None:
        """Check that the bucket can be reached.

        Raises:
            StoreError: It cannot; the message says whether address, credentials or bucket are wrong.
        """
        self._send(lambda: self._client.head_bucket(Bucket=self._bucket))

    def interrupt(self) -> None:
        """Make waiting requests of other threads fail, so that the process can end."""
        self._sender.interrupt()

    def pause(self, seconds: float) -> None:
        """Pause before an object is checked again.

        Raises:
            StoreError: The process is ending.
        """
        self._sender.pause(seconds)

    def put_file(
        self,
        path: Path,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> None:
        """Upload a file, with a multipart upload if it is large.

        Args:
            path: The file.
            key: Key of the object below the prefix.
            metadata: Metadata to store with the object (see `head`).
            sent: Called from several threads with the bytes that were sent since its last call; negative before they are sent again.

        Raises:
            StoreError: The service cannot be used, or the file cannot be read.
        """
        extra = {"Metadata": dict(metadata or {})}

        def upload() -> None:
            self._client.upload_file(
                str(path), self._bucket, self._key(key), ExtraArgs=extra, Callback=sent, Config=_UPLOAD
            )

        try:
            self._send(upload, upload=True)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be read for the upload ({error.strerror}); check file and disk"
            ) from error

    def put_bytes(self, data: bytes, key: str, *, if_none_match: bool = False) -> bool:
        """Write a small object.

        Args:
            data: Its content.
            key: Key of the object below the prefix.
            if_none_match: Write only if the object does not exist; of several concurrent writers, one succeeds.

        Returns:
            Whether it was written.

        Raises:
            StoreError: The service cannot be used.
        """
        return self._put(data, key, {"IfNoneMatch": "*"} if if_none_match else {}) is not None

    def swap(self, data: bytes, key: str, expected: str | None) -> str | None:
        """Replace a small object if it has not changed since it was read; of several concurrent writers, one succeeds.

        If the response was lost, the request is sent again and may be refused because the first one succeeded. So the stored object is
        compared with the content.

        Args:
            data: New content. Equal content can have an equal ETag, so every write must have different content.
            key: Key of the object below the prefix.
            expected: ETag of the object to replace (see `get_tagged`); None if there was no such object.

        Returns:
            The new ETag, or None if the object has changed meanwhile.

        Raises:
            StoreError: The service cannot be used.
        """
        return self._put(data, key, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected})

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object, or return None if it does not exist."""
        found = self.get_tagged(key)
        return None if found is None else found[0]

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Read a small object and its ETag, or return None if it does not exist."""
        try:
            return self._send(lambda: self._read(key), key)
        except NoSuchObjectError:
            return None

    def sha256(self, key: str) -> str:
        """Read an object and return the sha256 of its content, in hexadecimal digits.

        Raises:
            UnreadableError: The object does not exist, or cannot be read completely.
            StoreError: The service cannot be used.
        """

        def read() -> str:
            digest = hashlib.sha256()
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            for block in body.iter_chunks(1 << 20):
                digest.update(block)
            return digest.hexdigest()

        return self._send(read, key)

    def get_range(self, key: str, start: int, length: int | None) -> bytearray | None:
        """Read a part of an object.

        Args:
            key: Key of the object below the prefix.
            start: First byte.
            length: Number of bytes, at least 1; None for all bytes from `start` on.

        Returns:
            The bytes, fewer if the object ends earlier; None if the object does not exist.

        Raises:
            UnreadableError: The range cannot be read completely.
            StoreError: The service cannot be used.
        """
        span = f"bytes={start}-{'' if length is None else start + length - 1}"

        def read() -> bytearray:
            data = bytearray()
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range=span)["Body"]
            except ClientError as error:
                if code_of(error) in BEYOND_THE_END:
                    return data
                raise
            for block in body.iter_chunks(1 << 20):
                data += block
            return data

        try:
            return self._send(read, key)
        except NoSuchObjectError:
            return None

    def get_file(self, key: str, path: Path) -> str:
        """Download an object to a file, in parallel parts if it is large.

        Returns:
            The sha256 of the downloaded content, in hexadecimal digits.

        Raises:
            UnreadableError: The object does not exist, or cannot be read completely.
            StoreError: The service cannot be used, or the disk is full.
        """

        def download() -> str:
            with path.open("wb") as file:
                hashed = _HashedFile(file)
                self._client.download_fileobj(self._bucket, self._key(key), hashed, Config=_DOWNLOAD)
            return hashed.sha256.hexdigest()

        try:
            return self._send(download, key)
        except OSError as error:
            with suppress(OSError):
                path.unlink()  # a partial file is useless
            raise StoreError(
                f"{self.uri}/{key}: cannot be written to {path} ({self._missing(error, key, path)})"
            ) from error

    def head(self, key: str) -> ObjectHead | None:
        """Return size and metadata of an object, or None if it does not exist."""
        try:
            answer = self._send(lambda: self._client.head_object(Bucket=self._bucket, Key=self._key(key)), key)
        except NoSuchObjectError:
            return None
        return ObjectHead(answer["ContentLength"], answer["Metadata"])

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys below the store's prefix that start with `prefix`, in the order of S3 listings."""
        return [*self.tags(prefix)]

    def tags(self, prefix: str = "") -> dict[str, tuple[str, int]]:
        """Return the ETag and the size in bytes of each object that `list` returns; nothing is downloaded."""
        start = self._key(prefix) if prefix else f"{self._prefix}/" if self._prefix else ""

        def read() -> dict[str, tuple[str, int]]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            return {item["Key"]: (item["ETag"], item["Size"]) for page in pages for item in page.get("Contents", ())}

        found = self._send(read)
        return {key[len(self._prefix) + 1 :] if self._prefix else key: tag for key, tag in found.items()}

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        self._send(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(key)))

    def _put(self, data: bytes, key: str, condition: Mapping[str, str]) -> str | None:
        """Write a small object and return its ETag, or None if the condition fails."""
        tries = 0

        def write() -> str | None:
            nonlocal tries
            tries += 1
            try:
                answer = self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                # With If-Match, a missing object is reported as a missing key.
                if not (code_of(error) in CONDITION_FAILED or ("IfMatch" in condition and code_of(error) in MISSING)):
                    raise
                if tries == 1 and not error.response.get("ResponseMetadata", {}).get("RetryAttempts"):
                    return None
            else:
                return str(answer["ETag"])
            # A retry may have been refused because the first request succeeded.
            try:
                found = self._read(key)
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise
            return found[1] if found[0] == data else None

        return self._send(write, upload=True)

    def _read(self, key: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
        return answer["Body"].read(), str(answer["ETag"])

    def _key(self, key: str) -> str:
        if any(part in {".", ".."} for part in key.split("/")):
            raise StoreError(f"{self.uri}/{key!a}: a part of this address is `.` or `..`; write it without")
        return f"{self._prefix}/{key}" if self._prefix else key

    def _send(self, work: Callable[[], T], key: str | None = None, *, upload: bool = False) -> T:
        """Send a request and retry temporary faults (see `PatientSender.send`).

        Args:
            work: Sends the request; it can be called many times.
            key: Key of the object that is read, if one is.
            upload: Whether the request writes content.
        """
        checksums = upload and self._client.meta.config.request_checksum_calculation != "when_required"

        def meaning(error: Exception) -> StoreError:
            return fault_of(error, self.uri, key, checksums=checksums, accepted=self._sender.accepted)

        return self._sender.send(work, meaning)

    def _answers(self) -> bool:
        """Whether the service responds now."""
        try:
            self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
        except FAULTS:
            return False
        return True

    def _missing(self, error: OSError, key: str, path: Path) -> str:
        """Return why an object cannot be written to a file."""
        head = None
        with suppress(StoreError):  # the message is about the disk
            head = self.head(key)
        return disk_trouble(error, path.parent, needed=None if head is None else head.size)
