"""The difference between this machine's clock and that of a store."""

from __future__ import annotations

import http.client
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from pipelines.doctor.findings import Finding
from pipelines.store import StoreError, StoreOptions, split_uri, without_secrets
from pipelines.store.uris import LOCAL_ROOT, scheme_of

WARN_SECONDS = 30.0  # limit for leases, which compare heartbeats of other machines
FAIL_SECONDS = 900.0  # S3 refuses older signatures
ANSWER_SECONDS = 10.0
REMEDY = "Set the clock by NTP, for example with chrony."


def check_clock(uri: str, options: StoreOptions) -> Finding:
    """Compare this machine's clock with the `Date` of a store's answers, which need no credentials.

    Args:
        uri: any URI in the store.
        options: access to the store.
    """
    try:
        address = _address(uri, options)
        if address is None:
            return Finding("clock", "ok", "the store is a folder of this machine, or does not report its time")
        skew = _skew(address)
    except (OSError, http.client.HTTPException, ValueError, StoreError) as error:
        place = without_secrets(uri)
        return Finding("clock", "warn", f"the clock of the store of {place} could not be read: {error}", "")
    text = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store"
    if abs(skew) >= FAIL_SECONDS:
        return Finding(
            "clock",
            "fail",
            f"{text}; S3 rejects requests if the clock is off by more than 15 minutes",
            REMEDY,
            transient=True,
        )
    if abs(skew) >= WARN_SECONDS:
        return Finding("clock", "warn", text, REMEDY)
    return Finding("clock", "ok", text)


def _address(uri: str, options: StoreOptions) -> str | None:
    root, _ = split_uri(uri)
    if root == LOCAL_ROOT:
        return None
    scheme = scheme_of(root)
    if scheme in ("s3", "s3a"):
        from pipelines.store.aws import s3_access  # imported here: botocore takes 0.3 s

        access = s3_access(options)
        return access.endpoint or f"https://s3.{access.region}.amazonaws.com"
    if scheme in ("gs", "gcs"):
        return "https://storage.googleapis.com"
    return root if scheme in ("http", "https") else None


def _skew(address: str) -> float:
    """Return how many seconds this machine is ahead of a server, to about a second."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)
    try:
        before = time.time()
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date")
        after = time.time()
    finally:
        connection.close()
    if date is None:
        raise ValueError("its answer has no date")
    return (before + after) / 2 - parsedate_to_datetime(date).timestamp() - 0.5  # a date is truncated to whole seconds
