"""Splits and joins URIs of objects, and writes them without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import unquote

LOCAL_ROOT = "file:///"
GIVES_ACCESS = "contains a password, token or signature, which would be stored with it."

_SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_USERS = (
    re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE),  # a token may be there alone
    re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#@]*:[^/?#]*@"),
    # a secret key may contain slashes: text after a colon that is not a port is a password, up to its "@"
    re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)(?!arn:|\[)[^/?#@:]*:(?!\d*(?:[/?#]|$))[^?#]*@"),
)
_QUERY_VALUE = re.compile(r"(?<=[?&;])([^=&;#]*)=([^&;#]*)")
# Parameters that grant access: those of signed addresses of S3, Google, Azure and CloudFront, and of common APIs
_SECRET_NAME = re.compile(
    r"(?:.*[-_.])?(?:signature|sig|credentials?|token|jwt|secret|passw(?:or)?d|pwd|(?:api|access|secret|auth)[-_]?key)"
    r"|(?:aws|google)access(?:key)?id|key-pair-id|auth(?:orization)?",
    re.IGNORECASE,
)
# An object's name may contain "?name=", for example from crawlers, but not these names of stores' parameters
_SIGNED_NAME = re.compile(r"x-(?:amz|goog)-(?:signature|credential|security-token)", re.IGNORECASE)
_WEB = ("http", "https")
_AZURE = ("az", "azure", "abfs", "abfss", "adl")


def split_uri(uri: str) -> tuple[str, str]:
    """Return the root of a URI's store, and the key in it: `s3://b/x/y.jpg` -> (`s3://b`, `x/y.jpg`).

    Keys are not decoded: `?`, `#`, `%` and `//` are parts of names in object stores. Only web addresses have a query,
    which remains in the key. Local paths and `file:` URIs give (`file:///`, absolute path without first slash); `~/` at
    the beginning of a path is the home folder.
    """
    scheme = scheme_of(uri)
    if scheme in ("", "file"):
        return LOCAL_ROOT, _local_key(uri)
    found = _SCHEME.match(uri)
    assert found is not None  # scheme_of has found one
    rest = found["rest"]
    return f"{scheme}://{found['authority']}", rest.removeprefix("/")


def split_written(uri: str) -> tuple[str, str, str]:
    """Return the root of a URI's store, the beginning of the key that is not written in the URI, and the rest.

    The beginning is the working directory of a relative path, or the home folder, as far as no `..` leaves it; else "".
    """
    root, key = split_uri(uri)
    folder = _folder_of_relative(uri) if root == LOCAL_ROOT else ""
    folder = folder if key.startswith(folder) else key  # the folder itself, as in "."
    return root, folder, key[len(folder) :]


def scheme_of(uri: str) -> str:
    """Return the scheme in lower case, or "" for a path."""
    if uri[:5].lower() == "file:":
        return "file"
    found = _SCHEME.match(uri)
    return found["scheme"].lower() if found else ""


def other_machine(uri: str) -> str | None:
    """Return the host that a `file:` address names, such as `nas` in `file://nas/x`; None for none and `localhost`."""
    if scheme_of(uri) != "file" or not uri.startswith("//", 5):
        return None
    host = uri[7:].partition("/")[0].rpartition("@")[2]  # without a password
    return None if host.lower() in ("", "localhost") else host


def with_home(path: str) -> str:
    """Return a path whose first part `~` is replaced by the home folder, as shells do unless it is in quotes.

    Schedulers and container files pass arguments without a shell.
    """
    return os.path.expanduser(path) if path == "~" or path.startswith("~/") else path  # noqa: PTH111 - also `~user`


def join_uri(root: str, key: str) -> str:
    """Return the URI of a key; the inverse of `split_uri`."""
    return f"{root}{key}" if root == LOCAL_ROOT else f"{root}/{key}"


def is_utf8(text: str) -> bool:
    """Return whether a text can be stored; names of files that are not UTF-8 contain lone surrogates in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_name(uri: str) -> str:
    """Return the last part of a URI or path; for a web address without query, and with `%20` as a space."""
    root, key = split_uri(uri)
    if root.startswith(("http://", "https://")):
        key = unquote(key.partition("#")[0].partition("?")[0])
    return key.rstrip("/").rpartition("/")[2]


def without_secrets(uri: str) -> str:
    """Return the URI for a message without secrets: no `user:password@`, no values in the query of a web address.

    A signed web address has its signature in the query; which values are secret depends on the host. From keys of other
    stores, in which `?` is an ordinary character, only signatures are removed.
    """
    scheme = scheme_of(uri)
    return _without(uri, lambda name, value: scheme in _WEB or _is_secret(scheme, name, value))


def without_known_secrets(uri: str) -> str:
    """Return the address of a row for a file that is made of it: without what `has_secret` recognises.

    Other values in the query of a web address remain: they may be all that distinguishes two images. Lists and commands
    refuse addresses with a secret, so only rows of other origin change.
    """
    scheme = scheme_of(uri)
    return _without(uri, lambda name, value: _is_secret(scheme, name, value))


def has_secret(uri: str) -> bool:
    """Return whether an address grants access to anyone who reads it: it has a password, signature or token.

    A secret in the path of a web address, or under a name that only its host uses, is not recognised.
    """
    scheme = scheme_of(uri)
    if scheme in ("", "file"):
        return False
    return any(user.search(uri) for user in _USERS) or any(
        _is_secret(scheme, found[1], found[2]) for found in _QUERY_VALUE.finditer(uri)
    )


def check_no_secret(name: str, uri: str, *, instead: str) -> None:
    """Refuse an address with a secret, which would otherwise be recorded or sent.

    Args:
        name: of the option.
        uri: the address.
        instead: a sentence that says what to do.

    Raises:
        ValueError: the message does not contain the secret.
    """
    if has_secret(uri):
        raise ValueError(f"{name}: the address {without_secrets(uri)} {GIVES_ACCESS} {instead}")


def _without(uri: str, is_hidden: Callable[[str, str], bool]) -> str:
    shown = uri
    for user in _USERS if scheme_of(uri) not in ("", "file") else ():
        shown = user.sub(r"\1", shown)
    return _QUERY_VALUE.sub(lambda found: f"{found[1]}=..." if is_hidden(found[1], found[2]) else found[0], shown)


def _is_secret(scheme: str, name: str, value: str) -> bool:
    """Return whether a parameter has a secret: by its name, or in an address that it hands on to the host."""
    known = _SECRET_NAME if scheme in _WEB or scheme in _AZURE else _SIGNED_NAME
    return known.fullmatch(unquote(name)) is not None or (scheme in _WEB and has_secret(unquote(value)))


def _local_path(uri: str) -> str:
    """Return a local path, relative to the working directory or absolute."""
    if scheme_of(uri) != "file":
        return with_home(uri)
    path = uri[5:]
    return "/" + path[2:].partition("/")[2] if path.startswith("//") else path  # file://host/path: on this machine


def _folder_of_relative(uri: str) -> str:
    """Return the folder to which a local path is relative, without slash at the beginning; "" for absolute paths."""
    path = _local_path(uri)
    folder = "."
    if path != uri and not scheme_of(uri):
        folder, path = with_home("~"), uri[2:]
    elif path.startswith("/"):
        return ""
    parts = [part for part in os.path.abspath(folder).split("/") if part]  # noqa: PTH100 - as in _local_key
    depth = left = len(parts)
    for part in path.split("/"):
        depth = max(depth - 1, 0) if part == ".." else depth + (part not in ("", "."))
        left = min(left, depth)
    return "".join(f"{part}/" for part in parts[:left])


def _local_key(uri: str) -> str:
    path = _local_path(uri)
    is_folder = path.endswith("/")
    key = os.path.abspath(path).lstrip("/")  # noqa: PTH100 - pathlib's absolute() keeps "..", resolve() follows links
    return f"{key}/" if is_folder and key else key
