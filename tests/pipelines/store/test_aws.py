"""S3 settings: what no client can use is refused when a bucket is opened, by the name of the setting."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

import pytest

from pipelines.store import Misconfigured, NotFound, StoreDown, StoreOptions, open_store
from pipelines.store.aws import S3Access, s3_access, s3_client

NOWHERE = StoreOptions(endpoint="http://127.0.0.1:1", region="us-east-1", retry_seconds=0.0)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


def access(**options: str) -> S3Access:
    return s3_access(StoreOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "endpoint",
    ["minio:9000", "http://", "http://my host:9000", "http://minio:9000\n", "ftp://minio", "http://bücher.example",
     "http://minio:99999", "http://minio/a b", "http://minio?x", "minio"],
)  # fmt: skip
def test_an_endpoint_that_is_not_a_web_address_is_refused_by_the_name_of_its_setting(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Misconfigured, match=r"^--endpoint is not the address of a server"):
        access(endpoint=endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(Misconfigured, match=r"^AWS_ENDPOINT_URL is not the address of a server"):
        access()


def test_the_endpoint_of_a_profile_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = minio:9000\n")

    with pytest.raises(Misconfigured, match=r"^endpoint_url of the AWS profile is not the address"):
        access()


def test_an_endpoint_that_may_contain_a_password_is_not_shown() -> None:
    with pytest.raises(Misconfigured) as raised:
        access(endpoint="user:s3cret@minio:9000")

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "endpoint",
    ["http://minio:9000", "https://a_b.example.org", "http://[::1]:7480", "http://127.0.0.1:1/", "HTTPS://h/path/x"],
)
def test_any_web_address_may_be_an_endpoint(endpoint: str) -> None:
    assert access(endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"])
@pytest.mark.parametrize("end", ["\n", "\r"])
def test_a_line_end_in_a_variable_is_refused_without_showing_a_key(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"s3cret{end}")

    with pytest.raises(Misconfigured, match=f"^{name} contains a line end") as raised:
        open_store("s3://bucket/lake", StoreOptions(retry_seconds=0.0))

    assert "s3cret" not in str(raised.value) or name == "AWS_REGION"


def test_a_line_end_in_a_region_that_was_given_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"^--region contains a line end"):
        access(region="eu-west-1\n")


def test_a_line_end_in_the_keys_of_a_program_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    answer = '{"Version": 1, "AccessKeyId": "s3cret\\n", "SecretAccessKey": "x"}'
    (tmp_path / "answer.py").write_text(f"print({answer!r})")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {tmp_path}/answer.py\n")

    with pytest.raises(Misconfigured, match=r"^the AWS credentials of custom-process contain a line end") as raised:
        access()

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("value", ["", None])
def test_an_access_key_without_its_secret_is_refused(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", value)

    with pytest.raises(Misconfigured, match=r"^AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not"):
        open_store("s3://bucket/lake", NOWHERE)


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_of_the_keys_is_reported_also_where_none_is_needed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(missing)

    with pytest.raises(Misconfigured, match=r"s3://bucket cannot be opened: Missing .*, or neither"):
        open_store("s3://bucket/lake", StoreOptions(anonymous=True, retry_seconds=0.0))


@pytest.mark.parametrize("name", ["my bucket", "bucket\n", "bücket", "a<b", "*", "a" * 256])
@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_what_cannot_be_the_name_of_a_bucket_is_refused(name: str, via: Literal["auto", "fsspec"]) -> None:
    with pytest.raises(Misconfigured, match="is not a bucket: names of buckets have letters"):
        open_store(f"s3://{name}/lake", StoreOptions(via=via, retry_seconds=0.0))


@pytest.mark.parametrize(
    "name", ["my.bucket-1", "My_Bucket", "tenant:bucket", "arn:aws:s3:eu-west-1:123:accesspoint:x"]
)
def test_names_of_buckets_that_a_server_may_have_are_left_to_it(name: str) -> None:
    with pytest.raises(StoreDown):
        open_store(f"s3://{name}/lake", NOWHERE).head("a.jpg")


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_a_name_that_only_botocore_refuses_is_misconfigured_and_not_retried(via: Literal["auto", "fsspec"]) -> None:
    options = StoreOptions(endpoint="http://127.0.0.1:1", region="us-east-1", via=via, retry_seconds=0.5)
    store = open_store("s3://tenant:bucket", options)

    with pytest.raises(Misconfigured, match="S3 has no buckets with such a name"):
        next(iter(store.list("a//")))
    with pytest.raises(Misconfigured, match="S3 has no buckets with such a name"):
        store.get("a//b.jpg")


def test_an_address_without_the_name_of_an_object_is_not_found() -> None:
    with pytest.raises(NotFound, match="s3://bucket/ is not an object"):
        open_store("s3://bucket", StoreOptions(via="fsspec", retry_seconds=0.5)).get("")


def test_a_region_that_botocore_refuses_is_misconfigured() -> None:
    with pytest.raises(Misconfigured, match="the region 'eu west'"):
        s3_client(access(region="eu west"))
