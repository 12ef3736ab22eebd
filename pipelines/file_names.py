"""The file name at the end of a URI."""

from urllib.parse import unquote

from pipelines.store import split_uri


def file_name(uri: str) -> str:
    """Return the last part of a URI or path; of a web address without its query, and with `%20` as a space."""
    root, key = split_uri(uri)
    if root.startswith(("http://", "https://")):
        key = unquote(key.partition("#")[0].partition("?")[0])
    return key.rstrip("/").rpartition("/")[2]
