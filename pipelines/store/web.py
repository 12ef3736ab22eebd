"""Read files of web servers through fsspec's web file system."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NoReturn
from urllib.parse import quote

import aiohttp
import fsspec
import fsspec.asyn
import yarl

from pipelines.store.boto_s3 import plain_etag
from pipelines.store.interface import (
    CONNECT_SECONDS,
    REQUEST_SECONDS,
    Blob,
    Misconfigured,
    ObjectTooLarge,
    StoreEntry,
    is_transient,
    refuse_changed,
)
from pipelines.store.responses import Answer, store_error
from pipelines.store.retry import retry
from pipelines.store.uris import join_uri, without_secrets

# One of thousands of servers in a list of images does not get the minutes of a run's own store
RETRY_SECONDS = 15.0

# An endless or highly compressed response would fill the memory, and these servers are not trusted
LARGEST_BYTES = 256 * 1024**2
_PIECE_BYTES = 1024**2

# ASCII without blanks, control characters and "<>\\^`{|}
_NOT_IN_ADDRESSES = re.compile(r"[^!#-;=?-\[\]_a-z~]+")

_AUTHORITY = re.compile(r"(?P<scheme>[a-z]+://)(?P<authority>[^/?#]*)", re.IGNORECASE)


class WebStore:
    """The files of one server below a folder. Read-only, without listings."""

    def __init__(self, root: str, folder: str, *, retry_seconds: float) -> None:
        """Set the server's address and the folder ("" or with a trailing slash) to which keys are relative."""
        if not root.partition("://")[2]:
            raise Misconfigured(
                f"{root}/{folder} is not a web address: the host is missing. Check the list that contains it."
            )
        self._root = root
        self._folder = folder
        self._retry_seconds = min(retry_seconds, RETRY_SECONDS)
        self._files = fsspec.filesystem(
            "http",
            client_kwargs={
                "timeout": aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS),
                "trust_env": True,  # proxies
            },
        )
        fsspec.asyn.sync(self._files.loop, self._files.set_session)  # now: two threads would leak one
        self.uri = without_secrets(join_uri(root, folder).rstrip("/"))

    def list(self, prefix: str = "", after: str | None = None) -> Iterator[StoreEntry]:  # noqa: ARG002
        """Raise: web servers have no listing."""
        raise Misconfigured(f"{self.uri} cannot be listed: web servers have no listing. Give a list of URIs instead.")

    def head(self, key: str) -> StoreEntry:
        """Return size and etag if the server sends them."""
        _, headers = self._request(key, {}, whole=False)
        length = headers.get("Content-Length")
        return StoreEntry(
            key, int(length) if length and "Content-Encoding" not in headers else None, plain_etag(headers.get("ETag"))
        )

    def get(self, key: str, *, most_bytes: int | None = None) -> Blob:
        """Return the whole file, decompressed if necessary; at most `LARGEST_BYTES`."""
        data, headers = self._request(key, {}, most_bytes=most_bytes)
        return Blob(data, plain_etag(headers.get("ETag")))

    def get_range(self, key: str, start: int, length: int, *, if_match: str | None = None) -> bytes:
        """Return `length` bytes from `start`, or fewer at the end of the file."""
        if length == 0:
            return b""
        data, headers = self._request(key, {"Range": f"bytes={start}-{start + length - 1}"})
        shown = without_secrets(join_uri(self._root, self._folder + key))
        refuse_changed(shown, plain_etag(headers.get("ETag")), if_match)
        return data if "Content-Range" in headers else data[start : start + length]

    def put(self, key: str, data: bytes, *, create: bool = False, if_match: str | None = None) -> str | None:  # noqa: ARG002
        """Raise: web servers are read-only here."""
        self._refuse_writing()

    def delete(self, key: str) -> None:  # noqa: ARG002
        """Raise: web servers are read-only here."""
        self._refuse_writing()

    def _refuse_writing(self) -> NoReturn:
        raise Misconfigured(
            f"{self.uri} cannot be written: web servers can only be read. Choose a folder or an object store."
        )

    def _request(
        self, key: str, headers: dict[str, str], *, whole: bool = True, most_bytes: int | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        url = join_uri(self._root, self._folder + key)
        most = LARGEST_BYTES if most_bytes is None else min(LARGEST_BYTES, most_bytes)

        def request() -> tuple[bytes, Mapping[str, str]]:
            try:
                status, data, received = fsspec.asyn.sync(
                    self._files.loop, self._answer, url, headers, most if whole else None
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = store_error(Answer(words=type(error).__name__), "read", without_secrets(url))
            except _TooLongError:
                failure = ObjectTooLarge(
                    f"{without_secrets(url)} is longer than {most:,} bytes, which is too long for a photograph or a "
                    "list of photographs. Copy it into a bucket or a folder."
                )
            except ValueError:
                failure = Misconfigured(
                    f"{without_secrets(url)} is not a web address. Check the list that contains it."
                )
            else:
                if status == 416:
                    return b"", {"Content-Range": ""}
                if status < 300:
                    return data, received
                failure = store_error(Answer(status), "read", without_secrets(url))
            raise failure  # outside the `except`: aiohttp's errors contain the whole address, including its signature

        return retry(request, budget_seconds=self._retry_seconds, is_retryable=is_transient)

    async def _answer(
        self, url: str, headers: dict[str, str], most: int | None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Return status, bytes and headers of a response; with a limit of None the body is not read.

        Raises:
            _TooLongError: the body is larger, as announced or as received.
        """
        session = await self._files.set_session()
        async with session.get(_as_it_stands(url), headers=headers) as answer:
            data = bytearray()
            if most is None or answer.status >= 300:
                return answer.status, b"", answer.headers
            if (answer.content_length or 0) > most:
                raise _TooLongError
            while piece := await answer.content.read(_PIECE_BYTES):
                data += piece  # decompressed, if it was sent compressed
                if len(data) > most:
                    raise _TooLongError
            return answer.status, bytes(data), answer.headers


class _TooLongError(Exception):
    """The response has more bytes than allowed."""


def _as_it_stands(url: str) -> yarl.URL:
    """Return the address with only invalid characters escaped: signatures cover all other characters.

    The name of an international host is written as DNS has it (`xn--...`).

    Raises:
        ValueError: it is not the name of a host.
    """
    found = _AUTHORITY.match(url)
    if found is not None and not found["authority"].isascii():
        parsed = yarl.URL(found[0])
        port = "" if parsed.explicit_port is None else f":{parsed.explicit_port}"
        user = found["authority"].rpartition("@")[0]
        url = f"{found['scheme']}{user and user + '@'}{parsed.raw_host}{port}{url[found.end() :]}"
    return yarl.URL(_NOT_IN_ADDRESSES.sub(lambda found: quote(found[0], safe=""), url), encoded=True)
