"""Notices of AWS's and Google's metadata services, played here by a server on loopback.

It answers as the clouds' documentation says that theirs do; no test runs on a machine of either.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from pipelines.errors import RayDetrError
from pipelines.training.instance_metadata import (
    AwsMetadata,
    GoogleMetadata,
    MetadataUnavailable,
    Notice,
    find_service,
)
from tests.metadata_service import ACTION, PREEMPTED, REBALANCE, PlayedServer


class Clock:
    def now(self) -> datetime:
        return datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits")


@pytest.fixture
def played() -> Iterator[PlayedServer]:
    server = PlayedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_aws_tells_of_an_interruption_two_minutes_ahead(played: PlayedServer) -> None:
    service = find_service(played.url, clock=Clock())
    assert service.cloud == "AWS"
    assert service.read_notice() is None

    played.paths[ACTION] = '{"action": "terminate", "time": "2026-11-22T12:01:58Z"}'

    assert service.read_notice() == Notice("AWS will terminate this spot instance at 2026-11-22T12:01:58Z", 118.0)


def test_a_time_that_is_over_leaves_no_seconds(played: PlayedServer) -> None:
    played.paths[ACTION] = '{"action": "hibernate", "time": "2026-11-22T11:59:00Z"}'

    notice = find_service(played.url, clock=Clock()).read_notice()

    assert notice is not None
    assert notice.seconds == 0.0


def test_a_recommendation_to_leave_counts_only_when_asked_for(played: PlayedServer) -> None:
    played.paths[REBALANCE] = '{"noticeTime": "2026-11-22T11:59:00Z"}'

    assert find_service(played.url, clock=Clock()).read_notice() is None
    notice = find_service(played.url, on_rebalance=True, clock=Clock()).read_notice()
    assert notice is not None
    assert notice.seconds is None


def test_an_expired_token_is_replaced(played: PlayedServer) -> None:
    service = find_service(played.url, clock=Clock())
    played.token = "token-2"
    played.paths[ACTION] = '{"action": "stop", "time": "2026-11-22T12:01:00Z"}'

    notice = service.read_notice()

    assert notice is not None
    assert notice.seconds == 60.0


def test_google_tells_of_a_preemption(played: PlayedServer) -> None:
    played.cloud = "google"
    played.paths = {"/computeMetadata/v1/instance/id": "7", PREEMPTED: "FALSE"}
    service = find_service(played.url)
    assert service.cloud == "Google Cloud"
    assert service.read_notice() is None

    played.paths[PREEMPTED] = "TRUE\n"

    assert service.read_notice() == Notice("Google Cloud preempts this spot machine", 30.0)


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("cloud", ["aws", "google"])
def test_a_failing_service_is_not_a_notice(played: PlayedServer, cloud: str, status: int) -> None:
    played.cloud = cloud
    service = AwsMetadata(played.url) if cloud == "aws" else GoogleMetadata(played.url)
    played.status = status

    with pytest.raises(MetadataUnavailable, match=f"status {status}"):
        service.read_notice()


@pytest.mark.parametrize("text", ["", "soon", "{}", '{"action": "stop", "time": 3}', '{"action": "stop", "time": "x"}'])
def test_a_notice_that_cannot_be_parsed_is_an_error(played: PlayedServer, text: str) -> None:
    played.paths[ACTION] = text

    with pytest.raises(MetadataUnavailable, match="is not known"):
        AwsMetadata(played.url).read_notice()


def test_a_machine_of_neither_cloud_is_refused(played: PlayedServer) -> None:
    played.cloud = "another"
    with pytest.raises(RayDetrError, match=r"is neither AWS's metadata service nor Google's \(status 404\)"):
        find_service(played.url)


def test_a_machine_without_the_service_is_refused() -> None:
    with pytest.raises(RayDetrError, match=r"no metadata service answers at http://127\.0\.0\.1:1 \(.*refused"):
        find_service("http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["169.254.169.254", "https://169.254.169.254", "http://"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not an address such as http://169\.254\.169\.254"):
        find_service(url)
