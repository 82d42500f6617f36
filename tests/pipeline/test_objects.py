"""An object store that cannot be used is one line with the setting, its value and the cure. And large objects."""

import hashlib
import random
import socket
import time

import pytest
from boto3.exceptions import RetriesExceededError
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.service_faults import UnreadableError

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_named_without_being_shown(s3_environment, monkeypatch, tmp_path, wrong):
    monkeypatch.setenv(wrong, "of-somebody-else")
    objects = ObjectStore("s3://ngrpo/x")
    path = tmp_path / "file"
    path.write_text("x")
    for use in (objects.check, objects.list, lambda: objects.put_file(path, "k"), lambda: objects.get_file("k", path)):
        with pytest.raises(StoreError, match=r"access refused.*AWS_SECRET_ACCESS_KEY") as error:
            use()
        assert "of-somebody-else" not in str(error.value)
        assert s3_environment.secret_key not in str(error.value)
        assert "\n" not in str(error.value)


def test_no_credentials_are_named(s3_environment, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        ObjectStore("s3://ngrpo/x").check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", r"AWS_ENDPOINT_URL=http://127\.0\.0\.1:9 cannot be reached"),
        ("http://no-such-host.invalid", r"AWS_ENDPOINT_URL=http://no-such-host\.invalid cannot be reached"),
        ("127.0.0.1:9", r"AWS_ENDPOINT_URL=127\.0\.0\.1:9 is not a valid address; write http://host:port"),
        ("http://me:hush@127.0.0.1:9", r"AWS_ENDPOINT_URL=http://127\.0\.0\.1:9 cannot be reached"),
    ],
)
def test_a_wrong_endpoint_is_reported_quickly_and_without_its_password(s3_environment, monkeypatch, url, message):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    started = time.monotonic()
    with pytest.raises(StoreError, match=message) as error:
        ObjectStore("s3://ngrpo/x").check()
    assert time.monotonic() - started < 15
    assert "hush" not in str(error.value)


def test_an_endpoint_that_does_not_answer_is_reported_in_time(s3_environment, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]  # more than its queue takes: further packets are dropped
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            started = time.monotonic()
            with pytest.raises(StoreError, match=r"cannot be reached \(ConnectTimeoutError\)"):
                ObjectStore("s3://ngrpo/x").check()
            assert time.monotonic() - started < 25
        finally:
            for filler in fillers:
                filler.close()


def test_an_unknown_profile_is_not_taken_for_an_unreachable_service(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"profile \(nobody\) .*correct the AWS_\* variables"):
        ObjectStore("s3://ngrpo/x").check()


@pytest.mark.parametrize(
    ("uri", "message"), [("s3://nowhere/x", "no bucket 'nowhere'"), ("file:///tmp", "expected s3://")]
)
def test_a_wrong_address_is_named(s3_environment, uri, message):
    with pytest.raises(StoreError, match=message):
        ObjectStore(uri).check()


def test_a_missing_object_is_not_taken_for_a_missing_bucket(objects, tmp_path):
    assert objects.head("gone") is None
    assert objects.get_bytes("gone") is None
    with pytest.raises(UnreadableError, match="gone: there is no such object"):
        objects.get_file("gone", tmp_path / "gone")
    with pytest.raises(UnreadableError, match="gone: there is no such object"):
        objects.sha256("gone")


def test_parts_that_arrive_in_any_order_are_written_and_hashed_in_theirs(objects, tmp_path):
    content = random.Random(0).randbytes(40 << 20)  # five parts
    (tmp_path / "sent").write_bytes(content)
    objects.put_file(tmp_path / "sent", "large")
    assert objects.get_file("large", tmp_path / "got") == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "got").read_bytes() == content


@pytest.mark.parametrize(
    ("failure", "of_the_object"),
    [
        (RetriesExceededError(IncompleteReadError(actual_bytes=1, expected_bytes=2)), True),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (ClientError({"Error": {"Code": "InternalError"}}, "GetObject"), True),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"), False),
        (ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), False),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), False),
    ],
)
def test_an_object_that_cannot_be_read_is_told_from_a_service_that_cannot_be_used(tmp_path, failure, of_the_object):
    class Failing:
        def download_fileobj(self, *place: object, **options: object) -> None:
            raise failure

    with pytest.raises(StoreError) as error:
        ObjectStore("s3://ngrpo/x", Failing()).get_file("k", tmp_path / "k")
    assert isinstance(error.value, UnreadableError) == of_the_object
