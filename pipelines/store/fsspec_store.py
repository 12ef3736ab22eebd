"""All other stores, through fsspec; also S3 if fsspec is requested."""

from __future__ import annotations

import inspect
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import botocore.exceptions
import fsspec
import fsspec.asyn
import fsspec.config
import s3fs

from pipelines.store.aws import S3Access, client_config
from pipelines.store.boto_s3 import BotoS3, botocore_answer, plain_etag, refused_request
from pipelines.store.interface import (
    AlreadyExists,
    Blob,
    Misconfigured,
    NotFound,
    ObjectTooLarge,
    StoreEntry,
    StoreError,
    StoreOptions,
    is_transient,
    refuse_changed,
    refuse_larger,
)
from pipelines.store.responses import Action, Answer, store_error
from pipelines.store.retry import retry
from pipelines.store.uris import join_uri, scheme_of, without_secrets
from pipelines.store.walk import Child, walk

_Result = TypeVar("_Result")

# Names of the time of the last write in fsspec's file systems; for objects it is the creation time.
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")

# Names of the status in errors of HTTP clients.
_STATUS = ("status", "code")


class FsspecStore:
    """The files of an fsspec file system below a folder."""

    def __init__(self, root: str, folder: str, *, options: StoreOptions) -> None:
        """Set the root's URI, and the folder ("" or with a trailing slash) to which keys are relative."""
        self._files = _file_system(root, options)
        self._base = self._files._strip_protocol(join_uri(root, folder)).rstrip("/") + "/"  # noqa: SLF001 - fsspec's way from URIs to paths
        self._retry_seconds = options.retry_seconds
        self.uri = without_secrets(join_uri(root, folder).rstrip("/"))

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the files whose path begins with `prefix`, folder by folder, in the byte order of paths."""
        self._files.invalidate_cache()
        return walk(self._read_folder, prefix, after)

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key, as a listing has it."""
        info = self._call("read", key, lambda: self._files.info(self._base + key))
        if info.get("type") == "directory":
            raise NotFound(
                f"{self.uri}/{key} is not a file: name files, or the folder they are in with a slash at its end"
            )
        return StoreEntry(key, info.get("size"), _etag(info), modified=_modified(info))

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole file. Its etag is unknown: fsspec returns only bytes.

        With `most_bytes` its size is requested first; a file of unknown size is read anyway.
        """
        if most_bytes is not None:
            refuse_larger(f"{self.uri}/{key}", self.head(key).size, most_bytes)
        data: bytes = self._call("read", key, lambda: self._files.cat_file(self._base + key))
        refuse_larger(f"{self.uri}/{key}", len(data), most_bytes)
        return Blob(data, None)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, or fewer at the end of the file."""
        if if_match is not None:
            refuse_changed(f"{self.uri}/{key}", self.head(key).etag, if_match)
        data: bytes = self._call(
            "read", key, lambda: self._files.cat_file(self._base + key, start=start, end=start + length)
        )
        return data

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the whole file. `create` depends on the file system; `probe` tests it."""
        if if_match is not None:
            raise Misconfigured(f"{self.uri}: fsspec cannot replace a file only if it is unchanged.")
        mode = "create" if create else "overwrite"
        path = self._base + key

        def write() -> None:
            self._files.makedirs(posixpath.dirname(path), exist_ok=True)
            self._files.pipe_file(path, data, mode=mode)

        self._call("create" if create else "write", key, write)
        return None

    def delete(self, key: str) -> None:
        """Delete the file. Succeeds if it does not exist."""
        try:
            self._call("delete", key, lambda: self._files.rm_file(self._base + key))
        except NotFound:
            return

    def _read_folder(self, folder: str) -> Iterable[Child]:
        try:
            found = self._call("list", folder, lambda: self._files.ls(self._base + folder, detail=True))
        except NotFound:
            return []
        own = (self._base + folder).rstrip("/")
        return [_child(info) for info in found if info["name"].rstrip("/") != own]

    def _call(self, action: Action, key: str, request: Callable[[], _Result]) -> _Result:
        uri = f"{self.uri}/{key}"
        if "\0" in key or (
            ".." in key and ".." in key.split("/")
        ):  # the parent folder in most of these; keys must not lead out of ours
            raise NotFound(f"{uri!r}: this is not a valid object name.")

        def explained() -> _Result:
            try:
                return request()
            except Exception as error:  # noqa: BLE001 - fsspec's file systems raise what their libraries raise, each its own
                failure = _explained(error, action, uri)
            raise failure  # outside the `except`: messages may contain passwords, or repeat the request

        return retry(explained, budget_seconds=self._retry_seconds, is_retryable=is_transient)


class FsspecS3:
    """S3 read through s3fs, if a user needs it; listed and written through botocore, on which s3fs is built."""

    def __init__(
        self, slow: BotoS3, bucket: str, root: str, folder: str, *, access: S3Access, retry_seconds: float
    ) -> None:
        """Set the bucket, its URI, and the folder ("" or with a trailing slash) to which keys are relative."""
        self._slow = slow
        self._bucket = bucket
        self._folder = folder
        self._root = root
        self._retry_seconds = retry_seconds
        self._files = s3fs.S3FileSystem(
            anon=access.anonymous,
            profile=access.profile,
            endpoint_url=access.endpoint,
            client_kwargs={"region_name": access.region},
            max_concurrency=1,  # otherwise `cat_file` takes a HEAD and a GET
            use_listings_cache=False,  # otherwise objects of other writers are never seen
            skip_instance_cache=True,  # otherwise an instance with equal arguments shares its credentials
            config_kwargs=_s3fs_config(access),
        )
        self._payer = {"RequestPayer": "requester"} if access.request_payer else {}
        self._files.retries = 1  # our retries are limited by time
        self.uri = join_uri(root, folder).rstrip("/")

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:
        """Yield the objects whose key begins with `prefix` and is greater than `after`, in order, page by page."""
        folder = self._folder
        for entry in self._slow.list(folder + prefix, f"{folder}{after}" if after else ""):
            yield StoreEntry(  # not `replace`, which takes twice as long
                entry.key[len(folder) :], entry.size, entry.etag, entry.is_archived, modified=entry.modified
            )

    def folders(self, folder: str, after: str) -> tuple[Sequence[str], bool]:
        """Return folders within a folder that are greater than a key: see `ListsAnywhere`."""
        found, is_all = self._slow.folders(self._folder + folder, self._folder + after)
        return [name[len(self._folder) :] for name in found], is_all

    def head(self, key: str) -> StoreEntry:
        """Return the entry of a key, as a listing has it."""
        return replace(self._slow.head(self._folder + key), key=key)

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole object."""
        return self._read(key, most_bytes)

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, fewer only if the object ends before."""
        return self._slow.get_range(self._folder + key, start, length, if_match=if_match)

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:
        """Write the whole object in one request."""
        return self._slow.put(self._folder + key, data, create=create, if_match=if_match)

    def delete(self, key: str) -> None:
        """Delete the object. Succeeds if it does not exist."""
        self._slow.delete(self._folder + key)

    def _read(self, key: str, most_bytes: int | None) -> Blob:
        path = self._folder + key
        uri = join_uri(self._root, path)

        def read() -> Blob:
            try:
                answer = self._files.call_s3("get_object", Bucket=self._bucket, Key=path, **self._payer)
                data = fsspec.asyn.sync(self._files.loop, _read_body, answer, uri, most_bytes)
            except ObjectTooLarge:
                raise
            except Exception as error:  # noqa: BLE001 - s3fs lets through what botocore, aiohttp and its own code raise
                failure = _explained(error, "read", uri)
            else:
                return Blob(data, plain_etag(answer.get("ETag")))
            raise failure

        return self._slow.not_found_or_denied(
            path, lambda: retry(read, budget_seconds=self._retry_seconds, is_retryable=is_transient)
        )


async def _read_body(answer: Mapping[str, Any], uri: str, most_bytes: int | None) -> bytes:
    async with answer["Body"] as body:  # an unread body closes its connection
        refuse_larger(uri, answer.get("ContentLength"), most_bytes)
        data: bytes = await body.read()
        return data


def _file_system(root: str, options: StoreOptions) -> Any:
    scheme = scheme_of(root)
    settings: dict[str, Any] = {"use_listings_cache": False}
    if options.anonymous:
        settings |= {"token": "anon"} if scheme in ("gs", "gcs") else {"anon": True}
    check_file_system(root)
    with _opening(root):
        return fsspec.core.url_to_fs(root + "/", **settings)[0]


def check_file_system(root: str) -> None:
    """Check that fsspec knows the kind of a store, and that its address has what is necessary. Makes no request.

    Raises:
        Misconfigured: it does not.
    """
    with _opening(root):
        kind = fsspec.get_filesystem_class(scheme_of(root))
        found = kind._get_kwargs_from_urls(root + "/")  # noqa: SLF001 - fsspec's way from URIs to settings
        inspect.signature(kind.__init__).bind(None, **fsspec.config.apply_config(kind, found))


@contextmanager
def _opening(root: str) -> Iterator[None]:
    """Convert the errors of opening a store; those of its library may contain passwords."""
    scheme, name = scheme_of(root), without_secrets(root)
    try:
        yield
    except ImportError as error:
        raise Misconfigured(f"{name}: {scheme}:// needs another package. {error}") from error
    except ValueError as error:
        raise Misconfigured(
            f"{name}: {scheme}:// is not a known kind of store. Use s3, gs, az, https, a path, or a protocol of fsspec."
        ) from error
    except OSError as error:  # some connect immediately
        failure = store_error(Answer(words=type(error).__name__), "read", name)
    except Exception as error:  # noqa: BLE001 - each file system checks addresses in its own way, often not at all
        failure = Misconfigured(
            f"{name}/ is not a complete address of a {scheme}:// store ({type(error).__name__}). Check it."
        )
    else:
        return
    raise failure


def _s3fs_config(access: S3Access) -> dict[str, Any]:
    # s3fs creates its own botocore settings and accepts ours as a dictionary
    config = client_config(access)
    names = (
        "connect_timeout",
        "read_timeout",
        "retries",
        "s3",
        "request_checksum_calculation",
        "response_checksum_validation",
    )
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def _child(info: dict[str, Any]) -> Child:
    name = info["name"].rstrip("/").rpartition("/")[2]
    return Child(name, info["type"] == "directory", info.get("size"), _etag(info), _modified(info))


def _etag(info: dict[str, Any]) -> str | None:
    return plain_etag(info.get("ETag") or info.get("etag"))


def _modified(info: dict[str, Any]) -> float | None:
    """Return when a file was written, in seconds since 1970 (UTC)."""
    time = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            return None
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return float(time) if isinstance(time, int | float) else None


def _explained(error: Exception, action: Action, uri: str) -> StoreError:
    answer = botocore_answer(_response(error))
    if answer.status or answer.code:
        return store_error(answer, action, uri)
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return refused_request(action, uri)
    if isinstance(error, NotImplementedError):
        return Misconfigured(
            f"{uri}: this kind of store does not support this operation ({action}). Use s3, gs, az or a folder."
        )
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return NotFound(f"{uri}: no such object.")
    if isinstance(error, FileExistsError):
        return AlreadyExists(f"{uri} exists already.")
    return store_error(Answer(_status(error), words=type(error).__name__), action, uri)


def _response(error: BaseException) -> dict[str, Any]:
    """Return botocore's response, which s3fs keeps in the cause of its error."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error or its cause has, by itself or in the response of requests or httpx."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        for status in (getattr(response, "status_code", None), *(getattr(candidate, name, None) for name in _STATUS)):
            if isinstance(status, int):
                return status
    return 403 if isinstance(error, PermissionError) else None
