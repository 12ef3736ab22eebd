"""Taking the addresses of objects apart, and writing them without secrets."""

from __future__ import annotations

import os
import re

LOCAL_ROOT = "file:///"

_SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_USER_AND_PASSWORD = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#@]*:[^/?#@]*@")
_WEB_USER = re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE)
_QUERY_VALUE = re.compile(r"(?<=[?&])([^=&#]*)=([^&#]*)")


def split_uri(uri: str) -> tuple[str, str]:
    """Return the root of the store that a URI lies in, and the key there: `s3://b/x/y.jpg` -> (`s3://b`, `x/y.jpg`).

    Keys are taken as they stand: `?`, `#`, `%` and `//` are parts of names in object stores. Only web addresses have a
    query, which stays in the key. Local paths and `file:` URIs give (`file:///`, absolute path without first slash).
    """
    scheme = scheme_of(uri)
    if scheme in ("", "file"):
        return LOCAL_ROOT, _local_key(uri)
    found = _SCHEME.match(uri)
    assert found is not None  # scheme_of found one
    rest = found["rest"]
    return f"{scheme}://{found['authority']}", rest.removeprefix("/")


def scheme_of(uri: str) -> str:
    """Return the scheme in small letters, or "" for a path."""
    if uri[:5].lower() == "file:":
        return "file"
    found = _SCHEME.match(uri)
    return found["scheme"].lower() if found else ""


def join_uri(root: str, key: str) -> str:
    """Return the URI of a key: what `split_uri` takes apart."""
    return f"{root}{key}" if root == LOCAL_ROOT else f"{root}/{key}"


def without_secrets(uri: str) -> str:
    """Return the URI as it may be shown: no `user:password@`, and no values in the query of a web address.

    A signed web address carries its signature in the query; which of the values are secret differs from host to host.
    """
    shown = _WEB_USER.sub(r"\1", _USER_AND_PASSWORD.sub(r"\1", uri))
    return _QUERY_VALUE.sub(r"\1=...", shown) if scheme_of(uri) in ("http", "https") else shown


def _local_key(uri: str) -> str:
    path = uri
    if scheme_of(uri) == "file":
        path = uri[5:]
        if path.startswith("//"):
            path = "/" + path[2:].partition("/")[2]  # file://host/path: the host is this one
    is_folder = path.endswith("/")
    key = os.path.abspath(path).lstrip("/")  # noqa: PTH100 - pathlib's absolute() keeps "..", resolve() follows links
    return f"{key}/" if is_folder and key else key
