"""Convert errors of boto3 to one-line errors with a cure, and separate temporary from permanent faults.

- `OutOfReachError`: the service cannot be used at the moment.
- `UnreadableError`: the service responds, but an object cannot be read; `NoSuchObjectError` if it does not exist.
- any other `StoreError`: permanent; a retry would fail again.
"""

from __future__ import annotations

import os
import re

from boto3.exceptions import Boto3Error
from boto3.exceptions import RetriesExceededError as GivenUpError
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

MISSING = {"404", "NoSuchKey", "NotFound"}
CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
BEYOND_THE_END = {"InvalidRange", "416"}
_FORBIDDEN = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "ExpiredToken"}
_BROKEN = {"500", "InternalError"}
# In addition to the HTTP statuses 429 and, except 501, all from 500 on.
_BUSY = {"SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"}
_BUSY |= {
    "InternalError",
    "OperationAborted",
    "NoSuchUpload",
}  # NoSuchUpload: the response that completed the upload was lost
_GARBLED = {"BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"}
# Responses to an upload by services that do not support boto3's checksums.
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
FAULTS = (BotoCoreError, ClientError, Boto3Error, *_CUT, *_UNREACHED)
"""Exceptions that a request can raise because of the service; any other is a bug."""


class OutOfReachError(StoreError):
    """The service cannot be reached, is overloaded or broken at the moment, so the state of its objects is unknown."""


class UnreadableError(StoreError):
    """The service responds, but an object does not exist or cannot be read completely."""


class NoSuchObjectError(UnreadableError):
    """The object does not exist, according to the service."""


class GarbledError(OutOfReachError):
    """The service received other bytes than were sent."""


def fault_of(
    error: Exception, store: str, key: str | None = None, *, checksums: bool = False, accepted: bool = False
) -> StoreError:
    """Convert an error of boto3 to a one-line error with the cure. It never contains credentials.

    Args:
        error: The error, one of `FAULTS`.
        store: Address of the store.
        key: Key of the object that was read, if one was.
        checksums: Whether content was written with the checksums that boto3 adds by default.
        accepted: Whether the service has accepted these credentials before.
    """
    if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):
        error = error.__context__  # the transfer manager keeps the response only there
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(f"object store {store}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, ClientError):
        return _refusal(error, store, key, checksums=checksums, accepted=accepted)
    if key is not None and isinstance(error, _CUT):
        return UnreadableError(f"{store}/{key}: cannot be read completely ({type(error).__name__})")
    if isinstance(error, (*_CUT, *_UNREACHED)):
        return OutOfReachError(
            f"object store {store}: {endpoint()} cannot be reached ({type(error).__name__}); start the service or "
            "correct the address"
        )
    return StoreError(f"object store {store}: {error}; correct the AWS_* variables or ~/.aws/config")


def _refusal(error: ClientError, store: str, key: str | None, *, checksums: bool, accepted: bool) -> StoreError:
    """Convert an error response of the service to a one-line error with the cure."""
    code, status = code_of(error), int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if key is not None and code in MISSING:
        return NoSuchObjectError(f"{store}/{key}: there is no such object")
    if key is not None and code in _BROKEN:
        return UnreadableError(f"{store}/{key}: cannot be read (the service answers {code})")
    unknown_checksums = code in _NO_CHECKSUMS or (code == "SignatureDoesNotMatch" and accepted)
    if checksums and unknown_checksums:
        return (GarbledError if code in _GARBLED else StoreError)(
            f"object store {store}: the service answered {code} to an upload: it may not support the checksums that boto3 adds "
            "(aws-chunked); set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        )
    if code in _BUSY or status == 429 or (status >= 500 and status != 501):
        return OutOfReachError(f"object store {store}: the service answers {code}; see its log")
    if code in _FORBIDDEN:
        return StoreError(
            f"object store {store}: access refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the "
            "permissions of that account"
        )
    if code in {"NoSuchBucket", "404"}:
        return StoreError(
            f"object store {store}: there is no bucket {parse_address(store)[0]!r}; create it or set NGRPO_STORE to another"
        )
    return StoreError(f"object store {store}: the service answered {code}; see its log")


def code_of(error: ClientError) -> str:
    """Return the error code in a service's response."""
    return str(error.response.get("Error", {}).get("Code", ""))


def endpoint() -> str:
    """Return the environment variable of the endpoint as `NAME=value`, without a password."""
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    value = os.environ.get(name) or "(not set)"
    return f"{name}={re.sub(r'//[^/]*@', '//', value)}"
