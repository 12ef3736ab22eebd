"""S3 in particular: odd keys, faults, what answers mean, credentials."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import obstore
import pytest

from pipelines.store import (
    AlreadyExists,
    Archived,
    Changed,
    Denied,
    ListsAnywhere,
    Misconfigured,
    NoBucket,
    NotFound,
    ObjectTooLarge,
    Store,
    StoreDown,
    StoreError,
    StoreOptions,
    Stores,
    Throttled,
    open_store,
    probe,
)

if TYPE_CHECKING:
    from tests.conftest import S3Server
    from tests.pipelines.store.conftest import Between

Start = Callable[[str], "Between"]

LINE_BREAK = "d/line\nbreak"  # which moto cannot hold
ODD_KEYS = ["/lead.jpg", "//x", "d//b.jpg", "d/./x", "d/../x", "d/tab\t.jpg", "d/\x01x", "full/dir/"]
PLAIN_KEYS = ["!", "0", "a.jpg", "d/a", "d/e", "z"]
MARKERS = ["a/", "d/", "z/"]  # empty; two of them have the names of objects but for the slash


@pytest.fixture(params=["moto", pytest.param("s3", marks=pytest.mark.s3)])
def server(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


@dataclass(frozen=True)
class Lake:
    uri: str
    keys: list[str]

    def below(self, prefix: str) -> list[str]:
        return [key for key in self.keys if key.startswith(prefix)]


@pytest.fixture
def odd_lake(server: S3Server) -> Lake:
    uri = server.bucket()
    keys = ODD_KEYS + PLAIN_KEYS + ([LINE_BREAK] if server.is_real else [])
    for key in keys:
        server.client().put_object(Bucket=uri[5:], Key=key, Body=key.encode())
    for key in MARKERS:
        server.client().put_object(Bucket=uri[5:], Key=key, Body=b"")
    return Lake(uri, sorted(keys))


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_odd_keys_are_listed_in_order_and_read(
    server: S3Server, odd_lake: Lake, via: Literal["auto", "fsspec"]
) -> None:
    lake = open_store(odd_lake.uri, server.options(via=via))

    keys = [entry.key for entry in lake.list()]

    assert keys == odd_lake.keys
    assert [lake.get(key).data for key in keys] == [key.encode() for key in keys]


def test_a_listing_of_odd_keys_goes_on_after_any_of_them(server: S3Server, odd_lake: Lake) -> None:
    lake = open_store(odd_lake.uri, server.options())

    for index, key in enumerate(odd_lake.keys):
        assert [entry.key for entry in lake.list(after=key)] == odd_lake.keys[index + 1 :]


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_the_folders_within_a_folder_are_listed_behind_a_key(server: S3Server, via: Literal["auto", "fsspec"]) -> None:
    uri = server.bucket()
    for key in ["d/a/1", "d/a/2/3", "d/b", "d/b/1", "d/c/1", "e/1"]:
        server.client().put_object(Bucket=uri[5:], Key=key, Body=b"1")
    lake, folder = open_store(uri, server.options(via=via)), open_store(f"{uri}/d", server.options(via=via))
    assert isinstance(lake, ListsAnywhere)
    assert isinstance(folder, ListsAnywhere)

    assert lake.folders("", "") == (["d/", "e/"], True)
    assert lake.folders("", "d/a/1") == (["e/"], True)
    assert lake.folders("d/", "") == (["d/a/", "d/b/", "d/c/"], True)
    assert lake.folders("d/", "d/a/1") == (["d/b/", "d/c/"], True)
    assert lake.folders("d/", "d/b.") == (["d/b/", "d/c/"], True)
    assert lake.folders("d/", "d/d") == ([], True)
    assert folder.folders("", "a/1") == (["b/", "c/"], True)


def test_a_prefix_may_be_odd(server: S3Server, odd_lake: Lake) -> None:
    lake = open_store(odd_lake.uri, server.options())

    for prefix in ("/", "d/", "d/.", "d/../", "d//", "d/l", "z", "0"):
        assert [entry.key for entry in lake.list(prefix)] == odd_lake.below(prefix)


def test_a_store_of_a_folder_takes_odd_keys_too(server: S3Server, odd_lake: Lake) -> None:
    folder = open_store(f"{odd_lake.uri}/d", server.options())

    assert [entry.key for entry in folder.list()] == [key[2:] for key in odd_lake.below("d/")]
    assert folder.get("/b.jpg").data == b"d//b.jpg"
    assert folder.head("/b.jpg").size == 8
    assert folder.get_range("/b.jpg", 3, 2) == b"b."
    with pytest.raises(NotFound):
        folder.get("/c.jpg")


def test_odd_keys_are_written_once_and_deleted(server: S3Server) -> None:
    store = open_store(server.bucket(), server.options())
    etag = store.put("a//b", b"1", create=True)

    with pytest.raises(AlreadyExists):
        store.put("a//b", b"2", create=True)
    store.put("a//b", b"3", if_match=etag)
    with pytest.raises(Changed):
        store.put("a//b", b"4", if_match=etag)
    assert store.get("a//b").data == b"3"

    store.delete("a//b")
    assert list(store.list()) == []


def test_empty_images_are_kept_where_folder_markers_are_left_out(server: S3Server) -> None:
    uri = server.bucket()
    for key in ("a", "a-b", "a/", "b/", "b/x"):
        server.client().put_object(Bucket=uri[5:], Key=key, Body=b"")

    assert [entry.key for entry in open_store(uri, server.options()).list()] == ["a", "a-b", "b/x"]


def test_a_folder_marker_is_left_out_also_where_no_object_has_its_name(server: S3Server) -> None:
    uri = server.bucket()
    for key in ("b/", "b/x"):
        server.client().put_object(Bucket=uri[5:], Key=key, Body=b"")

    assert [entry.key for entry in open_store(uri, server.options()).list()] == ["b/x"]


@pytest.mark.parametrize("after", ["", "d00", "d04/_SUCCESS", "d05", "d19/a.jpg"])
def test_many_empty_objects_and_markers_are_told_apart_without_a_request_for_each(
    server: S3Server, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = server.bucket()
    keys = [f"d{number:02}/{name}" for number in range(20) for name in ("", "_SUCCESS", "a.jpg")]
    for key in [*keys, "d07"]:
        server.client().put_object(Bucket=uri[5:], Key=key, Body=b"1" if key.endswith("jpg") else b"")
    head, asked = obstore.head, []
    monkeypatch.setattr(obstore, "head", lambda bucket, path: (asked.append(path), head(bucket, path))[1])

    found = [(entry.key, entry.size) for entry in open_store(uri, server.options()).list(after=after or None)]

    objects = [key for key in keys if not key.endswith("/")]
    assert found == [(key, int(key.endswith("jpg"))) for key in sorted([*objects, "d07"]) if key > after]
    assert len(asked) <= 1


def test_a_page_with_empty_objects_is_listed_as_others_are(moto: S3Server) -> None:
    uri = moto.bucket()
    for number, size in enumerate([0, 0, 1]):
        moto.client().put_object(Bucket=uri[5:], Key=f"{number}", Body=b"1" * size, StorageClass="GLACIER")

    entries = list(open_store(uri, moto.options()).list())

    assert [(entry.key, entry.is_archived) for entry in entries] == [("0", False), ("1", False), ("2", False)]


def test_a_leading_slash_is_seen_where_nothing_else_is_odd(server: S3Server) -> None:
    uri = server.bucket()
    for key in ("/lead.jpg", "z.jpg"):
        server.client().put_object(Bucket=uri[5:], Key=key, Body=b"1")

    assert [entry.key for entry in open_store(uri, server.options()).list()] == ["/lead.jpg", "z.jpg"]


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_reading_an_object_is_one_request(moto: S3Server, between: Start, via: Literal["auto", "fsspec"]) -> None:
    uri = moto.bucket()
    moto.client().put_object(Bucket=uri[5:], Key="k", Body=b"1")
    proxy = between(moto.endpoint)

    open_store(uri, StoreOptions(endpoint=proxy.endpoint, region="us-east-1", via=via)).get("k")

    assert proxy.seen == [f"GET /{uri[5:]}/k"]


def test_a_prefix_is_not_listed_beyond_its_last_key(moto: S3Server, between: Start) -> None:
    proxy = between("")
    objects = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in ("2024-01/a", *(f"2024-02/{number:03}" for number in range(999)))  # a whole page
    )
    proxy.always = proxy.answer(
        200,
        f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{objects}"
        "</ListBucketResult>",
    )
    store = open_store("s3://bucket", StoreOptions(endpoint=proxy.endpoint, region="us-east-1", retry_seconds=0.0))

    assert [entry.key for entry in store.list("2024-01")] == ["2024-01/a"]
    assert len(proxy.seen) == 1
    assert "start-after=2024-00" in proxy.seen[0]


# -- faults: what the client does by itself


@pytest.fixture
def faulty(moto: S3Server, between: Start) -> tuple[Between, Store]:
    proxy = between(moto.endpoint)
    uri = moto.bucket()
    return proxy, open_store(uri, StoreOptions(endpoint=proxy.endpoint, region="us-east-1", retry_seconds=5.0))


def test_a_create_whose_answer_is_lost_is_sent_again_and_meets_itself(faulty: tuple[Between, Store]) -> None:
    proxy, store = faulty
    proxy.faults = ["lost"]

    with pytest.raises(AlreadyExists):
        store.put("k", b"mine", create=True)

    assert store.get("k").data == b"mine"


def test_a_create_that_never_arrived_is_sent_again_and_succeeds(faulty: tuple[Between, Store]) -> None:
    proxy, store = faulty
    proxy.faults = ["refused", proxy.s3_error(409, "ConditionalRequestConflict")]

    store.put("k", b"mine", create=True)

    assert store.get("k").data == b"mine"


def test_a_swap_whose_answer_is_lost_meets_itself(faulty: tuple[Between, Store]) -> None:
    proxy, store = faulty
    etag = store.put("k", b"first")
    proxy.faults = ["lost"]

    with pytest.raises(Changed):
        store.put("k", b"mine", if_match=etag)

    assert store.get("k").data == b"mine"


def test_reading_gets_over_a_busy_store_a_dead_connection_and_half_a_body(faulty: tuple[Between, Store]) -> None:
    proxy, store = faulty
    store.put("k", b"x" * 100_000)
    proxy.faults = [proxy.s3_error(503, "SlowDown"), "refused", "cut"]

    assert store.get("k").data == b"x" * 100_000


@pytest.mark.parametrize("fault", ["refused", "reset", "lost"])
def test_deleting_gets_over_a_dead_connection(
    faulty: tuple[Between, Store], fault: Literal["refused", "reset", "lost"]
) -> None:
    proxy, store = faulty
    store.put("k", b"")
    proxy.faults = [fault]

    store.delete("k")

    assert list(store.list()) == []


@pytest.mark.parametrize("position", range(6))
def test_a_lost_answer_does_not_make_a_store_look_as_if_it_could_not(
    faulty: tuple[Between, Store], position: int
) -> None:
    proxy, store = faulty
    proxy.faults = ["none"] * position + ["lost"]

    capabilities = probe(store)

    assert capabilities.create_only
    assert capabilities.swap is not None
    assert list(store.list()) == []
    assert proxy.faults == []


def test_a_listing_that_breaks_off_goes_on(faulty: tuple[Between, Store]) -> None:
    proxy, store = faulty
    store.put("a", b"")
    store.put("b", b"1")
    proxy.faults = ["none", "cut"]  # the first request looks for leading slashes

    assert [entry.key for entry in store.list()] == ["a", "b"]
    assert len([line for line in proxy.seen if "list-type=2" in line]) == 3


def test_a_whole_upload_is_one_request(faulty: tuple[Between, Store]) -> None:
    proxy, store = faulty

    store.put("k", b"x" * 12_000_000, create=True)
    store.put("k", b"x" * 12_000_000)

    assert len(proxy.seen) == 2


def test_archived_objects_are_reported_by_a_listing_unless_they_were_restored(moto: S3Server, between: Start) -> None:
    uri = moto.bucket()
    for key, kind in [("a", "STANDARD"), ("b", "GLACIER"), ("c", "DEEP_ARCHIVE"), ("d", "GLACIER_IR")]:
        moto.client().put_object(Bucket=uri[5:], Key=key, Body=b"1", StorageClass=kind)
    proxy = between(moto.endpoint)
    store = open_store(uri, replace(moto.options(via="fsspec"), endpoint=proxy.endpoint))

    assert [(entry.key, entry.is_archived) for entry in store.list()] == [
        ("a", False),
        ("b", True),
        ("c", True),
        ("d", False),
    ]

    page = """<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>
    <Contents><Key>b</Key><Size>1</Size><ETag>"e"</ETag><StorageClass>GLACIER</StorageClass>%s</Contents>
    </ListBucketResult>"""
    restored = (
        "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>"
        "<RestoreExpiryDate>2026-12-01T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>"
    )
    under_way = "<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>"
    for status, is_archived in [(restored, False), (under_way, True)]:
        proxy.faults = [proxy.answer(200, page % ""), proxy.answer(200, page % status)]
        assert [(entry.key, entry.is_archived) for entry in store.list()] == [("b", is_archived)]


# -- what answers mean

WAYS = ["auto", "fsspec", "odd key"]  # odd keys go through botocore


def ask(way: str, endpoint: str) -> Callable[[], object]:
    """Return what reads a key of a bucket in one of the three ways, with one try."""
    options = StoreOptions(
        endpoint=endpoint, region="us-east-1", retry_seconds=0.0, via="fsspec" if way == "fsspec" else "auto"
    )
    store = open_store("s3://bucket", options)
    return lambda: store.get("d//k.jpg" if way == "odd key" else "k.jpg")


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_becomes_the_error_that_says_what_to_do(moto: S3Server, between: Start, way: str) -> None:
    proxy = between("")
    get = ask(way, proxy.endpoint)

    for answer, expected, words in [
        (proxy.s3_error(404, "NoSuchKey"), NotFound, "no such object"),
        (proxy.s3_error(404, "NoSuchBucket"), NoBucket, "no such bucket"),
        (proxy.s3_error(403, "AccessDenied"), Denied, "s3:GetObject"),
        (proxy.s3_error(403, "SignatureDoesNotMatch"), Misconfigured, "credentials are rejected"),
        (proxy.s3_error(403, "InvalidObjectState"), Archived, "Restore"),
        (proxy.s3_error(400, "ExpiredToken"), Misconfigured, "log in again"),
        (proxy.s3_error(503, "SlowDown"), Throttled, "throttles requests"),
        (proxy.s3_error(500, "InternalError"), StoreDown, "busy"),
    ]:
        proxy.always = answer
        with pytest.raises(StoreError, match=words) as raised:
            get()
        assert type(raised.value) is expected
        assert "s3://bucket/" in str(raised.value)
        assert "k.jpg" in str(raised.value)


@pytest.mark.parametrize("via", ["auto", "fsspec"])
@pytest.mark.parametrize("call", ["get", "get_range", "head"])
@pytest.mark.parametrize("key", ["a.jpg", "d//a.jpg"])
def test_what_is_refused_and_not_listed_is_missing(
    moto: S3Server, between: Start, via: Literal["auto", "fsspec"], call: str, key: str
) -> None:
    """S3 answers so where the right to list is bound to a prefix."""
    uri, proxy = moto.bucket(), between(moto.endpoint)
    store = open_store(uri, StoreOptions(via, endpoint=proxy.endpoint, region="us-east-1", retry_seconds=0.0))
    read = {
        "get": lambda: store.get(key), "get_range": lambda: store.get_range(key, 0, 4), "head": lambda: store.head(key),
    }[call]  # fmt: skip
    # before a listing comes what reads: of a head two requests, as its answer has no body
    refusals = [proxy.s3_error(403, "AccessDenied")] * (2 if call == "head" and (via, key) == ("auto", "a.jpg") else 1)

    store.put(f"{key}.txt", b"begins as the other does")
    proxy.faults += refusals
    with pytest.raises(NotFound, match=r"a\.jpg cannot be read: no such object"):
        read()
    store.put(key, b"there")
    proxy.faults += refusals
    read()  # it is listed, so it was created between the two
    proxy.always = proxy.s3_error(403, "AccessDenied")
    with pytest.raises(Denied, match="s3:GetObject"):
        read()
    proxy.faults += refusals
    proxy.always = proxy.s3_error(503, "SlowDown")  # of the listing: then nothing is known
    with pytest.raises(Throttled):
        read()


def test_an_object_with_an_odd_name_that_is_too_large_is_refused(moto: S3Server) -> None:
    store = open_store(moto.bucket(), moto.options())
    store.put("d//a.jpg", b"12345")

    with pytest.raises(ObjectTooLarge, match=r"d//a\.jpg has 5 bytes, more than 4"):
        store.get("d//a.jpg", most_bytes=4)
    assert store.get("d//a.jpg", most_bytes=5).data == b"12345"


@pytest.mark.parametrize("way", WAYS)
def test_another_region_is_named(moto: S3Server, between: Start, way: str) -> None:
    proxy = between("")
    proxy.always = proxy.s3_error(400, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>")

    with pytest.raises(Misconfigured, match="another region 'eu-central-1'"):
        ask(way, proxy.endpoint)()


def test_a_redirect_is_another_region(moto: S3Server, between: Start) -> None:
    proxy = between("")
    proxy.always = proxy.s3_error(301, "PermanentRedirect")  # botocore would ask for the region, and follow
    store = open_store("s3://bucket", StoreOptions(endpoint=proxy.endpoint, region="us-east-1", retry_seconds=0.0))

    with pytest.raises(Misconfigured, match="Set AWS_REGION"):
        store.get("k")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", "s3:ListBucket"),
        (404, "NoSuchBucket", "no such bucket"),
        (403, "InvalidAccessKeyId", "rejected"),
    ],
)
@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_a_listing_that_is_refused_is_misconfigured(
    moto: S3Server, between: Start, via: Literal["auto", "fsspec"], status: int, code: str, expected: str
) -> None:
    proxy = between("")
    proxy.always = proxy.s3_error(status, code)
    options = StoreOptions(endpoint=proxy.endpoint, region="us-east-1", retry_seconds=0.0, via=via)

    with pytest.raises(Misconfigured, match=expected):
        list(open_store("s3://bucket/folder", options).list())


def test_a_missing_bucket_is_distinguished_from_a_missing_object_also_by_head(server: S3Server) -> None:
    uri = server.bucket()

    with pytest.raises(NotFound):
        open_store(uri, server.options()).head("k")
    with pytest.raises(Misconfigured, match="no such bucket"):
        open_store(f"{uri}-not", server.options()).head("k")
    with pytest.raises(Misconfigured, match="no such bucket"):
        open_store(f"{uri}-not", server.options()).put("k", b"", create=True)


@pytest.mark.parametrize("way", WAYS)
def test_no_server_is_a_store_that_is_down(moto: S3Server, way: str) -> None:
    with pytest.raises(StoreDown, match=r"s3://bucket/.*Check it and the network"):
        ask(way, "http://127.0.0.1:9")()


def test_a_store_without_conditional_puts_is_seen_through(moto: S3Server, between: Start) -> None:
    proxy = between("")
    proxy.always = proxy.answer(200, ETag='"1"')
    store = open_store("s3://bucket", StoreOptions(endpoint=proxy.endpoint, region="us-east-1", retry_seconds=0.0))

    capabilities = probe(store)

    assert not capabilities.create_only
    assert capabilities.swap is None
    assert proxy.seen[-1].startswith("DELETE /bucket/_runs/probe-")


# -- who we are


@pytest.mark.s3
@pytest.mark.parametrize("via", ["auto", "fsspec"])
@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "nobody")]
)
def test_wrong_credentials_are_misconfigured_and_stay_secret(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, via: Literal["auto", "fsspec"], variable: str, value: str
) -> None:
    uri = s3.bucket()
    monkeypatch.setenv(variable, value)
    store = open_store(uri, s3.options(via=via))

    for ask in (lambda: store.get("k"), lambda: list(store.list()), lambda: store.put("k", b"", create=True)):
        with pytest.raises(Misconfigured, match="credentials are rejected") as raised:
            ask()
        assert value not in str(raised.value)


@pytest.mark.s3
@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_a_public_object_is_read_without_credentials(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, via: Literal["auto", "fsspec"]
) -> None:
    uri = s3.bucket()
    s3.client().put_object(Bucket=uri[5:], Key="public", Body=b"hello", ACL="public-read")
    s3.client().put_object(Bucket=uri[5:], Key="private", Body=b"hello")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(uri, s3.options(via=via, anonymous=True))

    assert store.get("public").data == b"hello"
    with pytest.raises(Denied):
        store.get("private")
    with pytest.raises(Misconfigured, match="s3:ListBucket"):
        list(store.list())


@pytest.mark.s3
def test_a_versioned_bucket_that_forgets_its_conditions_is_seen_through(s3: S3Server) -> None:
    uri = s3.bucket()
    s3.client().put_bucket_versioning(Bucket=uri[5:], VersioningConfiguration={"Status": "Enabled"})

    assert not probe(open_store(uri, s3.options())).create_only


@pytest.mark.s3
@pytest.mark.slow
def test_a_listing_of_many_pages_with_odd_keys_among_them_is_whole(s3: S3Server) -> None:
    uri = s3.bucket()
    client = s3.client()
    keys = sorted([f"{number:05}.jpg" for number in range(3_500)] + ["00500.jpg//x", "01999.jpg//x", "/0", "/1"])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=uri[5:], Key=key, Body=b"1"), keys))
    store = open_store(uri, s3.options())

    assert [entry.key for entry in store.list()] == keys
    assert [entry.key for entry in store.list("01")] == [key for key in keys if key.startswith("01")]


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_no_credentials_are_reported_at_opening(no_credentials: Path, via: Literal["auto", "fsspec"]) -> None:
    began = time.monotonic()

    with pytest.raises(Misconfigured, match="no AWS credentials found"):
        open_store("s3://bucket", StoreOptions(via=via))

    assert time.monotonic() - began < 2


def test_an_unknown_profile_is_reported_at_opening(no_credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nightly")

    with pytest.raises(Misconfigured, match="nightly"):
        open_store("s3://bucket")


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_keys_endpoint_and_region_may_come_from_a_profile(
    moto_server: S3Server, no_credentials: Path, monkeypatch: pytest.MonkeyPatch, via: Literal["auto", "fsspec"]
) -> None:
    uri = moto_server.bucket()
    (no_credentials / "credentials").write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = very-secret\n")
    (no_credentials / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {moto_server.endpoint}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = open_store(uri, StoreOptions(retry_seconds=0.0, via=via))

    store.put("k", b"1", create=True)
    store.put("a//b", b"2", create=True)

    assert [(entry.key, store.get(entry.key).data) for entry in store.list()] == [("a//b", b"2"), ("k", b"1")]


@pytest.mark.parametrize("via", ["auto", "fsspec"])
def test_the_endpoint_may_come_from_the_environment(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, via: Literal["auto", "fsspec"]
) -> None:
    uri = moto.bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
    store = open_store(uri, StoreOptions(via=via))

    store.put("k", b"1")

    assert store.get("k").data == b"1"


def test_stores_opens_every_bucket_once(moto: S3Server) -> None:
    stores = Stores(moto.options())
    first, second = moto.bucket(), moto.bucket()
    for uri in (first, second):
        open_store(uri, moto.options()).put("a/b", uri.encode())

    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(stores.get, [f"{first}/a/b", f"{second}/a/b"] * 8))

    assert [blob.data for blob in blobs] == [first.encode(), second.encode()] * 8
    assert stores.find(f"{first}/a/b")[0] is stores.find(f"{first}/x")[0]
    assert stores.find(f"{first}/a/b")[1] == "a/b"


@pytest.mark.parametrize("create", [False, True])
def test_a_large_put_outlasts_the_time_of_other_requests(
    moto: S3Server, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    uri, data = moto.bucket(), b"0123456789" * 7 * 2**20
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.store.buckets.REQUEST_SECONDS", 0.02)  # no 70 megabytes are sent in that time
        hasty = open_store(uri, replace(moto.options(), retry_seconds=0.0))

    hasty.put("large", data, create=create)

    store = open_store(uri, moto.options())
    assert store.get("large").data == data
    if create:
        with pytest.raises(AlreadyExists):
            store.put("large", b"x", create=True)
