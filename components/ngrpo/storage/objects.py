"""Objects of an S3 service under one prefix, through boto3: retries temporary faults, and raises errors that name the cure.

A service that has answered once is retried for five minutes when it is out of reach: a training of days must not end because a
server was restarted. A failed first contact is reported at once, because the address may be wrong.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from boto3.exceptions import Boto3Error
from boto3.exceptions import RetriesExceededError as GivenUpError
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
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from ngrpo.errors import StoreError
from ngrpo.storage.address import parse_address
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.sessions import new_session

T = TypeVar("T")

_MISSING = {"404", "NoSuchKey", "NotFound"}
_REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_FORBIDDEN = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "ExpiredToken"}
_BEYOND = {"InvalidRange", "416"}
_BROKEN = {"500", "InternalError"}
# Besides statuses: 429, and 500 and above, except 501.
_BUSY = {"SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"}
_BUSY |= {"InternalError", "OperationAborted", "NoSuchUpload"}  # the last: the answer that ended an upload was lost
_GARBLED = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}
# Answers of services without support for boto3's checksums to an upload.
_NO_CHECKSUMS = {
    "NotImplemented",
    "501",
    "InvalidArgument",
    "InvalidRequest",
    "400",
    "BadRequest",
    "MissingContentLength",
    "411",
}
_NO_CHECKSUMS |= {"UnsupportedOperation", "MalformedTrailerError", "InvalidDigest"} | _GARBLED
_CUT = (
    IncompleteReadError,
    ResponseStreamingError,
    FlexibleChecksumError,
    RetriesExceededError,
    GivenUpError,
    S3DownloadFailedError,
)
_UNREACHED = (NoConnectionError, HTTPClientError, ConnectionError, TimeoutError)
_FAULTS = (BotoCoreError, ClientError, Boto3Error, *_CUT, *_UNREACHED)

_PATIENCE = 300.0
_PATIENCE_WITH_OBJECT = 60.0
"""Seconds to retry an unreadable object while the service answers: it may be damaged on the service's disk."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_GARBLED_TRIES = 3
_reached: set[str] = set()
"""Endpoints that have answered this process."""

_CONFIG = Config(
    connect_timeout=3,
    read_timeout=60,
    retries={"total_max_attempts": 3, "mode": "standard"},
)
# For one transfer; two run at a time (see `ngrpo.storage.artifacts`). More threads would slow the one that hashes.
_UPLOAD = TransferConfig(
    multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4, io_chunksize=1 << 20
)
_DOWNLOAD = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=4, io_chunksize=1 << 20
)


class OutOfReachError(StoreError):
    """The service is unreachable, overloaded or failing: the state of its objects is unknown."""


class UnreadableError(StoreError):
    """The service answers, but an object is missing or cannot be read to its end."""


class NoSuchObjectError(UnreadableError):
    """The service says that there is no such object."""


class _GarbledError(OutOfReachError):
    """The service reports that it received other bytes than were sent."""


@dataclass
class _Patience:
    """Retry state of an operation: when it began to fail, when the last try began, how long to wait, and the number of tries."""

    since: float | None = None
    began: float = 0.0
    wait: float = _FIRST_WAIT
    tries: int = 0


@dataclass(frozen=True)
class ObjectHead:
    """Size in bytes and metadata of an object."""

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


def _client() -> Any:
    """Return an S3 client from the environment."""
    return new_session().client("s3", config=_CONFIG)


class ObjectStore:
    """Objects below `s3://bucket/prefix`. Endpoint and credentials come from the environment, as boto3 reads it."""

    def __init__(self, uri: str, client: Any = None, *, patience: float = _PATIENCE, proven: bool = False):
        """Open a prefix; sends nothing yet.

        Args:
            uri: `s3://bucket` or `s3://bucket/prefix`.
            client: A boto3 S3 client; by default one from the environment.
            patience: Seconds to retry while the service is out of reach.
            proven: Whether the parent process has reached the service: then even the first contact is retried.

        Raises:
            StoreError: The address is not of that form, or the environment names no usable endpoint.
        """
        self._bucket, self._prefix = parse_address(uri)
        self.uri = uri.rstrip("/")
        self._patience = patience
        self._interrupted = threading.Event()
        self._said = False
        self._used = False
        try:
            self._client = client or _client()
        except ValueError as error:
            raise StoreError(
                f"object store {self.uri}: {_endpoint()} is no address; write http://host:port or https://host"
            ) from error
        except BotoCoreError as error:
            raise self._fault(error) from error
        self._endpoint = _endpoint()
        if proven:
            _reached.add(self._endpoint)

    def check(self) -> None:
        """Make sure that the bucket can be reached.

        Raises:
            StoreError: It cannot; the message says whether address, credentials or bucket are to blame.
        """
        self._patiently(lambda: self._client.head_bucket(Bucket=self._bucket))

    def interrupt(self) -> None:
        """Make waiting operations of other threads fail, so that the process can end."""
        self._interrupted.set()

    def pause(self, seconds: float) -> None:
        """Pause before an object is looked at again.

        Raises:
            StoreError: The process is ending.
        """
        if self._interrupted.wait(seconds):
            raise StoreError(f"object store {self.uri}: interrupted")

    def put_file(self, path: Path, key: str, *, metadata: Mapping[str, str] | None = None) -> None:
        """Upload a file, in parts where it is large.

        Args:
            path: The file.
            key: Its key below the prefix.
            metadata: Texts to store with the object (see `head`).

        Raises:
            StoreError: The service cannot be used, or the file cannot be read.
        """
        extra = {"Metadata": dict(metadata or {})}

        def upload() -> None:
            self._client.upload_file(str(path), self._bucket, self._key(key), ExtraArgs=extra, Config=_UPLOAD)

        try:
            self._patiently(upload, upload=True)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read to be stored ({error.strerror}); check file and disk") from error

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

        A request whose answer was lost is sent again, and may be refused because the first one succeeded: so the stored object is
        compared with the content.

        Args:
            data: Its new content. Equal content may have an equal ETag, so no two writes may have the same content.
            key: Its key below the prefix.
            expected: ETag of what it replaces (see `get_tagged`); none if there was no such object.

        Returns:
            The new ETag; none if the object has changed meanwhile.
        """
        return self._put(data, key, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected})

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; none if there is no such object."""
        found = self.get_tagged(key)
        return None if found is None else found[0]

    def get_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Read a small object and its ETag; none if there is no such object."""
        try:
            return self._patiently(lambda: self._read(key), key)
        except NoSuchObjectError:
            return None

    def sha256(self, key: str) -> str:
        """Read an object to its end and return the sha256 of its content, in hexadecimal digits.

        Raises:
            UnreadableError: There is no such object, or it cannot be read to its end.
            StoreError: The service cannot be used.
        """

        def read() -> str:
            digest = hashlib.sha256()
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            for block in body.iter_chunks(1 << 20):
                digest.update(block)
            return digest.hexdigest()

        return self._patiently(read, key)

    def get_range(self, key: str, start: int, length: int | None) -> bytearray | None:
        """Read a part of an object.

        Args:
            key: Its key below the prefix.
            start: First byte.
            length: Number of bytes, at least 1; none for all from `start` on.

        Returns:
            The bytes, fewer at the end of the object; none if there is no such object.

        Raises:
            UnreadableError: It cannot be read to its end.
            StoreError: The service cannot be used.
        """
        span = f"bytes={start}-{'' if length is None else start + length - 1}"

        def read() -> bytearray:
            data = bytearray()
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range=span)["Body"]
            except ClientError as error:
                if _code(error) in _BEYOND:
                    return data
                raise
            for block in body.iter_chunks(1 << 20):
                data += block
            return data

        try:
            return self._patiently(read, key)
        except NoSuchObjectError:
            return None

    def get_file(self, key: str, path: Path) -> str:
        """Download an object to a file, in parts where it is large.

        Returns:
            The sha256 of what was written, in hexadecimal digits.

        Raises:
            UnreadableError: There is no such object, or it cannot be read to its end.
            StoreError: The service cannot be used, or the disk is full.
        """

        def download() -> str:
            with path.open("wb") as file:
                hashed = _HashedFile(file)
                self._client.download_fileobj(self._bucket, self._key(key), hashed, Config=_DOWNLOAD)
            return hashed.sha256.hexdigest()

        try:
            return self._patiently(download, key)
        except OSError as error:
            with suppress(OSError):
                path.unlink()  # half a file is useless
            raise StoreError(
                f"{self.uri}/{key}: cannot be written to {path} ({self._missing(error, key, path)})"
            ) from error

    def head(self, key: str) -> ObjectHead | None:
        """Return size and metadata of an object; none if there is no such object."""
        try:
            answer = self._patiently(lambda: self._client.head_object(Bucket=self._bucket, Key=self._key(key)), key)
        except NoSuchObjectError:
            return None
        return ObjectHead(answer["ContentLength"], answer["Metadata"])

    def list(self, prefix: str = "") -> list[str]:
        """Return the keys below the store's prefix that start with `prefix`, in order."""
        return [*self.tags(prefix)]

    def tags(self, prefix: str = "") -> dict[str, tuple[str, int]]:
        """Return the ETag and the size of each object that `list` names; nothing is downloaded."""
        start = self._key(prefix) if prefix else f"{self._prefix}/" if self._prefix else ""

        def read() -> dict[str, tuple[str, int]]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=start)
            return {item["Key"]: (item["ETag"], item["Size"]) for page in pages for item in page.get("Contents", ())}

        found = self._patiently(read)
        return {key[len(self._prefix) + 1 :] if self._prefix else key: tag for key, tag in found.items()}

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        self._patiently(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(key)))

    def _put(self, data: bytes, key: str, condition: Mapping[str, str]) -> str | None:
        """Write a small object and return its ETag; none if the condition fails."""
        tries = 0

        def write() -> str | None:
            nonlocal tries
            tries += 1
            try:
                answer = self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                # With If-Match, a missing object is reported as a missing key.
                if not (_code(error) in _REFUSED or ("IfMatch" in condition and _code(error) in _MISSING)):
                    raise
                if tries == 1 and not error.response.get("ResponseMetadata", {}).get("RetryAttempts"):
                    return None
            else:
                return str(answer["ETag"])
            # A repeated request may have been refused because the first one succeeded.
            try:
                found = self._read(key)
            except ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
            return found[1] if found[0] == data else None

        return self._patiently(write, upload=True)

    def _read(self, key: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
        return answer["Body"].read(), str(answer["ETag"])

    def _key(self, key: str) -> str:
        if any(part in {".", ".."} for part in key.split("/")):
            raise StoreError(f"{self.uri}/{key!a}: a part of this address is `.` or `..`; write it without")
        return f"{self._prefix}/{key}" if self._prefix else key

    def _patiently(self, work: Callable[[], T], key: str | None = None, *, upload: bool = False) -> T:
        """Send a request, and retry temporary faults.

        Args:
            work: Sends it. It may be called many times.
            key: The object that it reads.
            upload: Whether it writes content.

        Raises:
            OutOfReachError: The service was out of reach for all the time of patience, or at first contact.
            NoSuchObjectError: There is no such object.
            UnreadableError: The object could not be read for a minute, while the service did answer.
            StoreError: The service refuses.
        """
        patience = _Patience()
        while True:
            patience.began = time.monotonic()
            patience.tries += 1
            try:
                result = work()
            except _FAULTS as error:
                fault = self._fault(error, key, upload=upload)
                if not self._goes_on(fault, patience):
                    raise fault from error
            else:
                _reached.add(self._endpoint)
                self._used = True
                if self._said and patience.since is not None:
                    self._said = False
                    print(f"object store {self.uri}: it answers again", file=sys.stderr, flush=True)
                return result

    def _goes_on(self, fault: StoreError, patience: _Patience) -> bool:
        """Wait for the next try; false if there is to be none."""
        if self._endpoint not in _reached or isinstance(fault, NoSuchObjectError):
            return False
        if not isinstance(fault, OutOfReachError | UnreadableError):
            return False
        if isinstance(fault, _GarbledError) and patience.tries >= _GARBLED_TRIES:
            return False
        now = time.monotonic()
        if now - patience.began > _PATIENCE:
            patience.since, patience.wait = now, _FIRST_WAIT  # a try that ran for so long was making progress
        elif patience.since is None:
            patience.since = patience.began
        left = patience.since + self._patience - now
        if left <= 0:
            return False
        if isinstance(fault, UnreadableError) and now - patience.since > _PATIENCE_WITH_OBJECT and self._answers():
            return False
        if not self._said:
            self._said = True
            what = str(fault).partition("; ")[0]
            print(f"{what}; trying again for up to {self._patience:.0f} seconds", file=sys.stderr, flush=True)
        if self._interrupted.wait(min(left, random.uniform(0.5, 1.5) * patience.wait)):
            return False
        patience.wait = min(2 * patience.wait, _LONGEST_WAIT)
        return True

    def _answers(self) -> bool:
        """Whether the service answers at this moment."""
        try:
            self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
        except _FAULTS:
            return False
        return True

    def _missing(self, error: OSError, key: str, path: Path) -> str:
        """Say why an object cannot be written to a file."""
        head = None
        with suppress(StoreError):  # the message is about the disk
            head = self.head(key)
        return disk_trouble(error, path.parent, needed=None if head is None else head.size)

    def _fault(self, error: Exception, key: str | None = None, *, upload: bool = False) -> StoreError:
        """Turn boto3's error into one line with the cure. Credentials are never part of it.

        Args:
            error: The error.
            key: The object that was read.
            upload: Whether content was written.
        """
        if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):
            error = error.__context__  # the transfer manager keeps the service's answer as that alone
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return StoreError(
                f"object store {self.uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if isinstance(error, ClientError):
            return self._refusal(error, key, upload)
        if key is not None and isinstance(error, _CUT):
            return UnreadableError(f"{self.uri}/{key}: cannot be read to its end ({type(error).__name__})")
        if isinstance(error, (*_CUT, *_UNREACHED)):
            return OutOfReachError(
                f"object store {self.uri}: {_endpoint()} cannot be reached ({type(error).__name__}); start the service or "
                "correct the address"
            )
        return StoreError(f"object store {self.uri}: {error}; correct the AWS_* variables or ~/.aws/config")

    def _refusal(self, error: ClientError, key: str | None, upload: bool) -> StoreError:
        """Turn what a service answers into one line with the cure."""
        code, status = _code(error), int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        if key is not None and code in _MISSING:
            return NoSuchObjectError(f"{self.uri}/{key}: there is no such object")
        if key is not None and code in _BROKEN:
            return UnreadableError(f"{self.uri}/{key}: cannot be read (the service answers {code})")
        unknown_checksums = code in _NO_CHECKSUMS or (code == "SignatureDoesNotMatch" and self._used)
        if upload and unknown_checksums and self._client.meta.config.request_checksum_calculation != "when_required":
            return (_GarbledError if code in _GARBLED else StoreError)(
                f"object store {self.uri}: the service answered {code} to an upload: it may not know the checksums that boto3 adds "
                "(aws-chunked); set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
            )
        if code in _BUSY or status == 429 or (status >= 500 and status != 501):
            return OutOfReachError(f"object store {self.uri}: the service answers {code}; see its log")
        if code in _FORBIDDEN:
            return StoreError(
                f"object store {self.uri}: access refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the "
                "rights of that account"
            )
        if code in {"NoSuchBucket", "404"}:
            return StoreError(
                f"object store {self.uri}: there is no bucket {self._bucket!r}; create it or set NGRPO_STORE to another"
            )
        return StoreError(f"object store {self.uri}: the service answered {code}; see its log")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _endpoint() -> str:
    """Return the variable that names the endpoint with its value, less a password that may be in it."""
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    value = os.environ.get(name) or "(not set)"
    return f"{name}={re.sub(r'//[^/]*@', '//', value)}"
