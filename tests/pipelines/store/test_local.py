"""Folders: odd names, links, and entries that are not files."""

from __future__ import annotations

import errno
import io
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pipelines.store import (
    AlreadyExists,
    Denied,
    Misconfigured,
    NotFound,
    StoreDown,
    StoreError,
    Stores,
    open_store,
    open_unflushed,
)
from pipelines.store.local import LocalStore


def keys_below(folder: Path) -> list[str]:
    return [entry.key for entry in open_store(str(folder)).list()]


@contextmanager
def without_root() -> Iterator[None]:
    """Give up root's rights, which include reading everything, for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_is_made_when_something_is_put(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/new/table/")

    store.put("_runs/1/part", b"x", create=True)

    assert store.uri == f"file://{tmp_path}/new/table"
    assert (tmp_path / "new/table/_runs/1/part").read_bytes() == b"x"
    assert sorted(path.name for path in (tmp_path / "new/table/_runs/1").iterdir()) == ["part"]


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_on_the_disk_before_its_name_and_both_before_the_next_file_is_written(
    create: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, int | None, bool]] = []
    flush = os.fsync

    def record(descriptor: int) -> None:
        status = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        flushed.append((is_folder, None if is_folder else status.st_size, (tmp_path / "part").exists()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    open_store(str(tmp_path)).put("part", b"four", create=create)

    assert flushed == [(False, 4, False), (True, None, True)]


def test_very_many_files_that_can_be_made_again_are_not_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise AssertionError("flushed")

    monkeypatch.setattr(os, "fsync", refuse)
    store = open_unflushed(str(tmp_path / "export"))
    store.put("labels/a.txt", b"x")

    assert open_store(str(tmp_path)).get("export/labels/a.txt").data == b"x"


def test_a_file_system_that_cannot_flush_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    store = open_store(str(tmp_path))
    store.put("part", b"x", create=True)

    assert store.get("part").data == b"x"


def test_any_name_that_a_disk_can_hold_is_listed_and_read(tmp_path: Path) -> None:
    names = [".hidden", "100%25.jpg", "a b#1?.jpg", "back\\slash", "line\nbreak", "~", "Ünï", "😀"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    store = open_store(str(tmp_path))

    assert keys_below(tmp_path) == names
    assert [store.get(name).data for name in names] == [name.encode() for name in names]


def test_a_name_that_is_not_utf8_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).touch()
    (tmp_path / "café.jpg").touch()

    with caplog.at_level(logging.WARNING):
        assert keys_below(tmp_path) == ["café.jpg"]

    assert "not UTF-8" in caplog.text


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "lake/day").mkdir(parents=True)
    (tmp_path / "lake/day/a.jpg").write_bytes(b"1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b.jpg").write_bytes(b"22")
    (tmp_path / "lake/day/up").symlink_to(tmp_path / "lake")
    (tmp_path / "lake/other").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(tmp_path / "lake/day")
    (tmp_path / "lake/z.jpg").symlink_to(tmp_path / "nowhere")

    entries = list(open_store(str(tmp_path / "lake")).list())

    assert [(entry.key, entry.size) for entry in entries] == [
        ("day/a.jpg", 1),
        ("other/b.jpg", 2),
        ("other/back/a.jpg", 1),
        ("z.jpg", None),
    ]


@pytest.mark.parametrize(
    ("target", "name"),
    [("0.jpg/foo.jpg", "ENOTDIR"), ("n" * 300, "ENAMETOOLONG"), ("nowhere", "ENOENT"), ("z.jpg", "ELOOP")],
)
def test_a_broken_link_is_one_missing_file_and_hides_no_other(target: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"1")
    (tmp_path / "day").mkdir()
    (tmp_path / "day/1.jpg").write_bytes(b"1")
    (tmp_path / "z.jpg").symlink_to(target)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the number is what matters
        os.stat(tmp_path / "z.jpg")  # noqa: PTH116

    assert errno.errorcode[raised.value.errno or 0] == name
    assert [(entry.key, entry.size) for entry in open_store(str(tmp_path)).list()] == [
        ("0.jpg", 1), ("day/1.jpg", 1), ("z.jpg", None)
    ]  # fmt: skip
    with pytest.raises(NotFound):
        open_store(str(tmp_path)).get("z.jpg")


def test_a_link_into_a_folder_without_permission_is_one_denied_file() -> None:
    with TemporaryDirectory() as name:  # not `tmp_path`, which others may not enter
        top = Path(name)
        top.chmod(0o755)
        (top / "lake").mkdir()
        (top / "lake/a.jpg").write_bytes(b"1")
        (top / "private").mkdir()
        (top / "lake/b.jpg").symlink_to(top / "private/b.jpg")
        (top / "private").chmod(0o000)
        with without_root():
            listed = [(entry.key, entry.size) for entry in open_store(str(top / "lake")).list()]
            with pytest.raises(Denied):
                open_store(str(top / "lake")).get("b.jpg")

    assert listed == [("a.jpg", 1), ("b.jpg", None)]


def test_entries_that_are_not_files_are_neither_listed_nor_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        store = open_store(str(tmp_path))

        assert keys_below(tmp_path) == []
        for name in ("pipe", "folder", "socket", "no/file", "nul\0", "x" * 300):
            with pytest.raises(NotFound):
                store.get(name)


def test_a_file_below_a_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()

    with pytest.raises(NotFound, match="Not a directory"):
        open_store(str(tmp_path)).get("a.jpg/b.jpg")
    open_store(str(tmp_path)).delete("a.jpg/b.jpg")


def test_an_etag_is_another_when_the_file_is_another(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "a").write_bytes(b"1")
    os.utime(tmp_path / "a", ns=(1, 1))
    first = store.get("a").etag
    os.utime(tmp_path / "a", ns=(1, 2))
    second = store.get("a").etag
    (tmp_path / "a").write_bytes(b"22")
    os.utime(tmp_path / "a", ns=(1, 2))
    third = store.get("a").etag

    assert len({first, second, third}) == 3


def test_an_unfinished_file_is_not_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    seen: list[list[str]] = []
    names: list[list[str]] = []

    def link(source: str, target: str) -> None:
        seen.append(keys_below(tmp_path))
        names.append(sorted(path.name for path in tmp_path.iterdir()))
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreDown, match="Input/output error"):
        store.put("x.parquet", b"1", create=True)

    assert seen == [[]]
    assert not names[0][0].endswith(".parquet")
    assert names[0][0].startswith(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EPERM, "no hard links"), (errno.EOPNOTSUPP, "no hard links"), (errno.ENOSPC, "disk is full")],
)
def test_a_disk_that_cannot_create_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)

    with pytest.raises(Misconfigured, match=words):
        open_store(str(tmp_path)).put("x", b"1", create=True)


@pytest.mark.parametrize(("code", "words"), [(errno.EROFS, "the disk is read-only"), (errno.EIO, "Input/output error")])
def test_a_disk_that_fails_in_the_middle_says_why_and_not_that_nothing_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(os, "unlink", fail)

    with pytest.raises(StoreError, match=words):
        open_store(str(tmp_path)).put("x", b"1")


def test_a_name_that_is_too_long_is_refused_by_the_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="name too long"):
        open_store(str(tmp_path)).put(f"{'x' * 300}/y", b"1")


def test_a_reader_sees_old_or_new_but_never_half(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    old, new = b"o" * 3_000_000, b"n" * 3_000_000
    store.put("k", old)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.get("k").data)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        store.put("k", new)
        store.put("k", old)
    stop.set()
    reader.join()

    assert seen <= {old, new}


def test_creating_over_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()

    with pytest.raises(AlreadyExists):
        open_store(str(tmp_path)).put("k", b"1", create=True)


def test_stores_reads_any_path(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"1")

    assert Stores().get(str(tmp_path / "a b.jpg")).data == b"1"
    assert Stores().get(f"file://{tmp_path}/a b.jpg").data == b"1"


def test_a_file_is_written_from_another_from_its_position_on_and_whole_or_not_at_all(tmp_path: Path) -> None:
    data = b"head" + bytes(range(256)) * 10_000  # more than one read

    class Torn(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError(errno.EIO, "the disk is broken")
            return super().read(size)

    store, file = LocalStore(str(tmp_path)), io.BytesIO(data)
    file.seek(4)
    store.put_file("sub/a", file)
    with pytest.raises(StoreError):
        store.put_file("sub/b", Torn(data))

    assert store.get("sub/a").data == data[4:]
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a"]
