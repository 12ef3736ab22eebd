"""The command `watch_preemption`: from a notice to a drained node, with the cloud and Ray replaced."""

from __future__ import annotations

import pytest

from jobs.watch_preemption import main
from pipelines.errors import RayDetrError
from pipelines.training import instance_metadata, preemption
from pipelines.training.instance_metadata import Notice


class Service:
    cloud = "AWS"

    def read_notice(self) -> Notice:
        return Notice("AWS will stop this spot instance", 110.0)


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Notice]]:
    """A machine that is about to be taken away; gives what was drained."""
    calls: list[tuple[str, str, Notice]] = []
    monkeypatch.setattr(instance_metadata, "find_service", lambda url, on_rebalance: Service())
    monkeypatch.setattr(preemption, "own_node", lambda address: (address or "10.0.0.1:6379", "own"))
    monkeypatch.setattr(preemption, "drain", lambda *call: calls.append(call))
    return calls


def test_the_own_node_is_drained_once(
    drained: list[tuple[str, str, Notice]], capsys: pytest.CaptureFixture[str]
) -> None:
    main([])

    assert drained == [("10.0.0.1:6379", "own", Notice("AWS will stop this spot instance", 110.0))]
    out, err = capsys.readouterr()
    assert out == "drained: node own\n"
    assert err == (
        "watching AWS's notices for node own of 10.0.0.1:6379\n"
        "AWS will stop this spot instance, in 110 s: draining node own\n"
    )


def test_cluster_and_node_may_be_named(drained: list[tuple[str, str, Notice]]) -> None:
    main(["--address", "10.0.0.9:6379", "--node-id", "ab12"])

    assert drained[0][:2] == ("10.0.0.9:6379", "ab12")


@pytest.mark.parametrize("line", [["--poll-seconds", "0"], ["--poll-seconds", "x"], ["--metadata-url", "ftp://x"]])
def test_wrong_use_is_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)

    assert caught.value.code == 2
    assert line[1] in capsys.readouterr().err


def test_a_machine_that_is_not_in_a_cloud_is_refused() -> None:
    with pytest.raises(RayDetrError, match=r"no metadata service answers at http://127\.0\.0\.1:1 "):
        main(["--metadata-url", "http://127.0.0.1:1"])
