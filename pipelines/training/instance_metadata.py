"""Reads preemption notices from the instance metadata of AWS and Google Cloud."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from urllib.parse import urlsplit

from pipelines.clock import Clock, SystemClock
from pipelines.errors import RayDetrError

ANSWER_SECONDS: Final = 2.0  # the service is on the same host
TOKEN_SECONDS: Final = 21_600  # AWS's limit for a token
GOOGLE_SECONDS: Final = 30.0  # from Google's notice to the end; the notice has no time

_TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105 - where it is
_GOOGLE: Final = {"Metadata-Flavor": "Google"}


class MetadataUnavailable(Exception):
    """The metadata service did not answer, or not correctly; the next request may succeed."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A preemption notice: the reason, and the seconds until then; None if no time is given."""

    reason: str
    seconds: float | None


class MetadataService(Protocol):
    """The metadata service of a cloud."""

    @property
    def cloud(self) -> str:
        """The cloud's name."""
        ...

    def read_notice(self) -> Notice | None:
        """Return the notice, or None while there is no notice.

        Raises:
            MetadataUnavailable: there was no answer.
        """
        ...


class AwsMetadata:
    """AWS's instance metadata, version 2: spot interruptions, two minutes ahead, and rebalance recommendations.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    cloud = "AWS"

    def __init__(self, url: str, *, on_rebalance: bool = False, clock: Clock | None = None) -> None:
        """Set the service's address, and whether a rebalance recommendation counts as a notice."""
        self._url = url
        self._on_rebalance = on_rebalance
        self._clock = clock or SystemClock()
        self._token: str | None = None

    def read_notice(self) -> Notice | None:
        """Return the notice of an interruption, else of a rebalance recommendation if those count."""
        action = self._get("/latest/meta-data/spot/instance-action")
        if action is not None:
            try:
                record = json.loads(action)
                when = datetime.fromisoformat(record["time"])
                left = (when - self._clock.now()).total_seconds()
                return Notice(f"AWS will {record['action']} this spot instance at {record['time']}", max(0.0, left))
            except (KeyError, TypeError, ValueError) as error:
                raise MetadataUnavailable(f"the notice {action!r} is not known") from error
        if self._on_rebalance and self._get("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Notice("AWS recommends leaving this instance: it is likely to be interrupted", None)
        return None

    def ask_token(self) -> bool:
        """Get a new token; return whether the service has tokens, which only AWS's has.

        Raises:
            MetadataUnavailable: there was no answer.
        """
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, body = _request(self._url, "PUT", _TOKEN_PATH, lifetime)
        self._token = body if status == http.client.OK else None
        return self._token is not None

    def _get(self, path: str) -> str | None:
        for _ in range(2):
            if self._token is None and not self.ask_token():
                raise MetadataUnavailable("it returned no token")
            status, body = _request(self._url, "GET", path, {"X-aws-ec2-metadata-token": self._token or ""})
            if status == http.client.OK:
                return body
            if status == http.client.NOT_FOUND:
                return None
            if status != http.client.UNAUTHORIZED:
                raise MetadataUnavailable(f"{path} answers with status {status}")
            self._token = None  # it expires after six hours
        raise MetadataUnavailable("it rejects the token that it returned")


class GoogleMetadata:
    """Google's metadata server: preemptions of spot machines, half a minute ahead.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    """

    cloud = "Google Cloud"

    def __init__(self, url: str) -> None:
        """Set the service's address."""
        self._url = url

    def read_notice(self) -> Notice | None:
        """Return the notice of a preemption."""
        status, body = _request(self._url, "GET", "/computeMetadata/v1/instance/preempted", _GOOGLE)
        if status != http.client.OK:
            raise MetadataUnavailable(f"it answers with status {status}")
        if body.strip().upper() != "TRUE":
            return None
        return Notice("Google Cloud preempts this spot machine", GOOGLE_SECONDS)


def find_service(url: str, *, on_rebalance: bool = False, clock: Clock | None = None) -> MetadataService:
    """Return the service at an address: AWS's if it has tokens, else Google's if its response is Google's.

    Args:
        url: Its address, without a path.
        on_rebalance: Whether AWS's rebalance recommendation counts as a notice.
        clock: The clock.

    Raises:
        RayDetrError: there is neither.
        ValueError: the address is not an HTTP address.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"metadata url: {url!r} is not an address such as http://169.254.169.254.")
    aws = AwsMetadata(url, on_rebalance=on_rebalance, clock=clock)
    try:
        if aws.ask_token():
            return aws
        status, _ = _request(url, "GET", "/computeMetadata/v1/instance/id", _GOOGLE)
    except MetadataUnavailable as error:
        raise RayDetrError(
            f"no metadata service answers at {url} ({error}). Run this on a machine of AWS or Google Cloud; in a "
            "container on AWS the instance's metadata hop limit must be 2."
        ) from error
    if status != http.client.OK:
        raise RayDetrError(
            f"the service at {url} is neither AWS's metadata service nor Google's (status {status}). "
            "Other clouds are not supported."
        )
    return GoogleMetadata(url)


def _request(url: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return status and text. Does not use a proxy, which would return the data of another machine."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise MetadataUnavailable(str(error) or type(error).__name__) from error
    finally:
        connection.close()
