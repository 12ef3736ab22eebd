"""Local folders as a store."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipelines.store.interface import (
    AlreadyExists,
    Blob,
    Denied,
    Misconfigured,
    NotFound,
    StoreDown,
    StoreEntry,
    StoreError,
    refuse_changed,
    refuse_larger,
)
from pipelines.store.uris import LOCAL_ROOT, is_utf8
from pipelines.store.walk import Child, walk

logger = logging.getLogger(__name__)

# Begins with a dot and does not end in .parquet: readers of tables ignore unfinished files, and so does `list`.
_UNFINISHED = ".ray-detr-unfinished-"

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_BROKEN_LINK = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "the disk is read-only"}


class LocalStore:
    """All files below a folder, including hidden ones and the targets of links.

    Uses system calls directly: obstore's local store rejects names with line breaks and names such as `a#1`, does not
    list in order, and needs as much CPU.
    """

    def __init__(self, folder: str, *, flushes: bool = True) -> None:
        """Set the absolute path of a folder, which may not exist yet, and whether `put` waits for the disk."""
        self._flushes = flushes
        self._folder = folder.rstrip("/") + "/"
        self.uri = LOCAL_ROOT + self._folder.strip("/")

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the files whose path begins with `prefix`, in the byte order of paths."""
        return (entry for entry in self.list_all(prefix, after) if not entry.unnameable)

    def list_all(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the same, with the number of names in each folder that are not UTF-8: see `ListsUnnameable`."""
        return walk(self._read_folder, prefix, after)

    def head(self, key: str) -> StoreEntry:
        """Return size and etag of a file."""
        try:
            status = os.stat(self._path(key))  # noqa: PTH116 - a Path for every call would cost as much as the call
        except (OSError, ValueError) as error:
            raise _explained(error, self._path(key), "read") from error
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(
                f"{self._path(key)} is not a file: name files, or the folder they are in with a slash at its end"
            )
        return StoreEntry(key, status.st_size, _etag(status), modified=status.st_mtime)

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole file."""
        data, status = self._read(key, 0, None, most_bytes)
        return Blob(data, _etag(status))

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, or fewer at the end of the file."""
        data, status = self._read(key, start, length)
        refuse_changed(self._path(key), _etag(status), if_match)
        return data

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write a temporary file and rename it, so that readers see the whole file or no file.

        File and name are on the disk when this returns, so that after a power failure no record names a missing file;
        not if `flushes` is False.
        """
        if if_match is not None:
            raise Misconfigured(f"{self.uri}: folders cannot replace a file only if it is unchanged; use a lock file")
        return self._put(key, (data,), create=create)

    def put_file(self, key: str, file: IO[bytes]) -> None:
        """Write the rest of an open file in the same way, a megabyte at a time."""
        self._put(key, iter(lambda: file.read(2**20), b""), create=False)

    def _put(self, key: str, parts: Iterable[bytes], *, create: bool) -> str:
        path = self._path(key)
        folder = path[: path.rfind("/") + 1]
        unfinished = f"{folder}{_UNFINISHED}{secrets.token_hex(8)}"
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            etag = _write(unfinished, parts, flushes=self._flushes)
            if create:
                _link(unfinished, path)
            else:
                os.replace(unfinished, path)  # noqa: PTH105
            if self._flushes:
                _flush_folder(folder)
        except (OSError, ValueError) as error:
            raise _explained(error, path, "written") from error
        finally:
            with suppress(OSError, ValueError):  # whatever is wrong with the folder, the write has said it
                os.unlink(unfinished)  # noqa: PTH108
        return etag

    def lock(self, key: str) -> int | None:
        """Lock a file for this process, and create it if necessary. Return the descriptor, or None if it is locked.

        The lock ends when the descriptor is closed, or when this process and its forked children (those that have not
        executed another program) have ended.
        """
        path = self._path(key)
        while True:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except (OSError, ValueError) as error:
                raise _explained(error, path, "locked") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError as error:
                os.close(descriptor)
                raise _explained(error, path, "locked") from error
            if _is_at(path, descriptor):
                return descriptor
            os.close(descriptor)  # the previous holder has removed the file: others lock the new one

    def delete(self, key: str) -> None:
        """Delete the file. Succeeds if it does not exist."""
        try:
            os.unlink(self._path(key))  # noqa: PTH108
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError) as error:
            raise _explained(error, self._path(key), "deleted") from error

    def _path(self, key: str) -> str:
        """Return the path of a key's file. It is always below the folder, even for a key from a damaged record."""
        if ".." in key and ".." in key.split("/"):
            raise NotFound(f"{key!r} is not the name of a file below {self._folder}: it leads outside")
        return self._folder + key

    def _read(
        self, key: str, start: int, length: int | None, most_bytes: int | None = None
    ) -> tuple[bytes, os.stat_result]:
        path = self._path(key)
        try:
            # O_NONBLOCK: opening a named pipe must not wait for its writer
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise _explained(error, path, "read") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotFound(f"{path} is not a file: name files, or the folder they are in with a slash at its end")
            refuse_larger(path, status.st_size, most_bytes)
            wanted = min(max(status.st_size - start, 0), status.st_size if length is None else length)
            pieces, at = [], start
            while wanted and (piece := os.pread(descriptor, wanted, at)):  # the kernel returns at most 2 GiB at once
                pieces.append(piece)
                at, wanted = at + len(piece), wanted - len(piece)
        except OSError as error:
            raise _explained(error, path, "read") from error
        finally:
            os.close(descriptor)
        if wanted:
            raise StoreDown(f"{path} became shorter while it was read. Let its writer finish, then run again.")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), status

    def _read_folder(self, folder: str) -> Iterable[Child]:
        path = self._path(folder)
        try:
            found = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            return []  # removed since its parent was read, or an empty prefix
        except (OSError, ValueError) as error:
            raise _unlisted(error, path) from error
        try:
            with found:
                children = [child for entry in found if (child := _child(entry)) is not None]
        except OSError as error:
            raise _unlisted(error, path) from error
        unnameable = sum(child.unnameable for child in children)
        if unnameable:
            children = [child for child in children if not child.unnameable]
            children.append(Child("", is_folder=False, unnameable=unnameable))
        return children


def _child(entry: os.DirEntry[str]) -> Child | None:
    if entry.name.startswith(_UNFINISHED):
        return None
    if not entry.name.isprintable() and not is_utf8(entry.name):
        logger.warning("left out %r: its name is not UTF-8, so a table cannot store it; rename it", entry.path)
        return Child("", is_folder=False, unnameable=1)
    try:
        if entry.is_dir():
            if entry.is_symlink() and _leads_up(entry.path):
                logger.warning("left out %r: the link leads to a folder above itself", entry.path)
                return None
            return Child(entry.name, is_folder=True)
        status = entry.stat()
    except OSError as error:
        if error.errno not in _BROKEN_LINK and not (error.errno == errno.EACCES and entry.is_symlink()):
            raise
        return Child(entry.name, is_folder=False)  # a missing or denied image, which should get a row
    if not stat.S_ISREG(status.st_mode):
        return None  # pipes, sockets, devices
    return Child(entry.name, is_folder=False, size=status.st_size, etag=_etag(status), modified=status.st_mtime)


def _leads_up(link: str) -> bool:
    """Return whether following a link leads to a folder above the link, also through other links."""
    target = Path(link).resolve()
    above = {real for folder in Path(link).parents for real in (folder.resolve(), *folder.resolve().parents)}
    return target in above


def _etag(status: os.stat_result) -> str:
    # without the inode: a copy of a lake with the same times is the same lake
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _write(path: str, parts: Iterable[bytes], *, flushes: bool) -> str:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        if flushes:
            os.fsync(descriptor)  # before the file gets its name, which must not be on the disk without the content
        return _etag(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _flush_folder(folder: str) -> None:
    """Wait until the names in a folder are on the disk. Some network file systems have no such call, and need none."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _link(unfinished: str, path: str) -> None:
    """Give a file its name atomically, unless the name exists."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise Misconfigured(
                f"{path} cannot be created safely: the file system has no hard links. "
                "Put the table on another disk or in an object store."
            ) from error
        raise


def _explained(error: OSError | ValueError, path: str, action: str) -> StoreError:
    if isinstance(error, ValueError):
        return NotFound(f"{path!r} cannot be {action}: this is not a valid file name")
    code = error.errno or 0
    if code == errno.EEXIST:
        return AlreadyExists(f"{path} exists already")
    if code in _FULL:
        return Misconfigured(f"{path} cannot be {action}: {_FULL[code]}. Free some space, or choose another folder.")
    if code in (errno.EACCES, errno.EPERM):
        return Denied(f"{path} cannot be {action}: permission denied. Check its owner and mode.")
    if code in _NOT_THERE:
        return NotFound(f"{path} cannot be {action}: {os.strerror(code)}.")
    return StoreDown(f"{path} cannot be {action}: {os.strerror(code)}. Check the disk.")


def _unlisted(error: OSError | ValueError, path: str) -> StoreError:
    if isinstance(error, PermissionError):
        return Misconfigured(
            f"{path} cannot be listed: permission denied. Make it readable, or list the folders beside it."
        )
    return _explained(error, path, "listed")


def _is_at(path: str, descriptor: int) -> bool:
    """Return whether an open file is still the one at this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))  # noqa: PTH116
    except FileNotFoundError:
        return False
