"""Convert obstore's exceptions. They have no code: it is in their text, with the whole response of the store."""

from __future__ import annotations

import re

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError, UnauthenticatedError

from pipelines.store.interface import Misconfigured, StoreError
from pipelines.store.responses import Action, Answer, credentials_expired, store_error

# obstore's own exceptions, and the two of Python's that it raises: FileNotFoundError, PermissionError
NATIVE_ERRORS = (BaseError, OSError)

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REGION = re.compile(r"<Region>([\w-]+)</Region>")
_WORDS = re.compile(r"HTTP error: ([^\n(]+)")
_INSTANCE_METADATA = "169.254.169.254"


def native_answer(error: BaseException) -> Answer:
    """Return the store's response, parsed from the text of obstore's exception."""
    text = str(error)
    status, code, region, words = (pattern.search(text) for pattern in (_STATUS, _CODE, _REGION, _WORDS))
    known = {FileNotFoundError: 404, PermissionError: 403, AlreadyExistsError: 409, PreconditionError: 412}
    by_type = next((number for kind, number in known.items() if isinstance(error, kind)), None)
    if "without LOCATION" in text:  # a redirect to another region
        by_type = 301
    if "Wanted range starting at" in text:  # obstore's own check, after the end
        by_type = 416
    return Answer(
        status=int(status[1]) if status else by_type,
        code=code[1] if code else None,
        words=words[1].strip() if words else "",
        region=region[1] if region else None,
    )


def native_error(error: BaseException, action: Action, uri: str) -> StoreError:
    """Return our error for an exception of obstore.

    Its text contains the requested address, which may be signed for Azure, and the store's whole response, in which S3
    repeats an expired session token and a wrong signature. Only harmless parts are used, and code that raises our error
    must not keep the original as its cause or context.
    """
    if _INSTANCE_METADATA in str(error):
        return Misconfigured(
            f"{uri} cannot be reached: no credentials found, here or in the machine's metadata. "
            "Set them, or read a public bucket anonymously."
        )
    if isinstance(error, UnauthenticatedError):
        return credentials_expired(uri)
    return store_error(native_answer(error), action, uri)
