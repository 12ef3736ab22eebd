"""The option `--image-urls`: addresses that Label Studio can open instead of those in the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from pipelines.errors import UsageError
from pipelines.options import option
from pipelines.store import check_no_secret


def image_urls_option() -> Any:
    """Declare the option as a field of a configuration."""
    return option(
        "FROM TO: in Label Studio's tasks, replace the beginning FROM of each address by TO, which browsers can open, "
        "such as https://host/lake/ (no change)",
        default=(), metavar="TEXT",
    )  # fmt: skip


def check_image_urls(replaced: Sequence[str], kind: str) -> None:
    """Check the values of the option for a format.

    Raises:
        ValueError: they are not two, have a secret, or the format has no addresses that are opened.
    """
    if replaced and len(replaced) != 2:
        raise ValueError("image urls: give two values, the beginning of the addresses and its replacement")
    if replaced and kind != "labelstudio":
        raise ValueError(
            f"image urls: only Label Studio's tasks have addresses that a tool opens; omit the option for {kind}"
        )
    for text in replaced:
        check_no_secret("image urls", text, instead="It would be written into the tasks.")


def image_url(uri: str, replaced: Sequence[str]) -> str:
    """Return the address that Label Studio opens for an image."""
    if not replaced or not uri.startswith(replaced[0]):
        return uri
    rest = uri.removeprefix(replaced[0])
    is_escaped = uri.startswith(("http://", "https://"))  # web addresses are encoded; keys and paths are not
    is_url = replaced[1].startswith(("http://", "https://", "/"))
    return replaced[1] + (quote(rest) if is_url and not is_escaped else rest)


def refuse_unused(uris: Iterable[str], replaced: Sequence[str]) -> None:
    """Refuse a beginning that no address has.

    Raises:
        UsageError: there are addresses, and none begins with it.
    """
    one = None
    for uri in uris:
        if uri.startswith(replaced[0]):
            return
        one = uri
    if one is not None:
        raise UsageError(f"--image-urls: no address of the chosen images begins with {replaced[0]}; one is {one}.")
