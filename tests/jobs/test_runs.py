"""The command `runs`: what a table's runs are and whether what they wrote is whole, for people and for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import gethostname

import pytest

from jobs.exits import run as run_command
from jobs.runs import main
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.attempts import Attempt, Reason, write_attempt
from pipelines.labelling.lease import LEASE_KEY, holding
from pipelines.labelling.manifest import read_shard
from pipelines.labelling.outcome import Work
from pipelines.labelling.plan import write_plan
from pipelines.labelling.progress import Progress
from pipelines.labelling.publish import commit_part, publish_group
from pipelines.labelling.run import Run, RunRequest, finish_run
from pipelines.labelling.seal import seal_run
from pipelines.labelling.watch import Watched, watch_run
from pipelines.labelling.writer_process import this_process
from pipelines.lake.lake_object import LakeObject
from pipelines.lake.listing import Listing
from pipelines.store import Store, open_store
from pipelines.table.schema import NO_COLUMNS, Detected, Origin, Row, rows_to_table
from tests.memory_store import memory_store
from tests.pipelines.labelling.runs import start_run
from tests.simulation.world import Clock

ROOT = Path(__file__).parents[2]
FP32 = '{"precision":"fp32"}'
NOW = datetime(2026, 11, 22, 18, 15, 3, tzinfo=UTC)
FOUND = Detected([1], ("dog",), [0.5], [[0, 0, 1, 1]])


@pytest.fixture
def table(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "table"))


def start(table: Store, run_id: str) -> Run:
    return start_run(table, RunRequest("detr@1", "1", {}, 2, {}, run_id=run_id), now=NOW, tail="0001")[0]


def label(table: Store, run: Run) -> None:
    """Plan, label and publish three images, of which one cannot be read; the run is not ended."""

    def stream(after: str | None) -> Iterator[LakeObject]:
        return (LakeObject(f"s3://b/{run.run_id}/{number}", "e") for number in range(3))

    listing = Listing((stream,), NO_COLUMNS)
    (segment,) = write_plan(table, run.run_id, listing, lambda objects: [False] * len(objects), shard_images=2)
    for shard in segment.shards:
        rows = [
            Row(item.uri, "e", detections=FOUND) if item.uri[-1] != "2" else Row(item.uri, "e", error_kind="truncated")
            for item in read_shard(table, run.run_id, shard)
        ]
        origin = Origin("detr@1", 0.5, run.run_id, shard, NOW)
        commit_part(table, run.run_id, shard, rows_to_table(rows, origin=origin), token="t")
    publish_group(table, run, segment)


def finish(table: Store, run_id: str) -> None:
    finish_run(table, run_id, now=NOW, totals={"rows": 3, "detections": 2, "errors": {"truncated": 1}})


@pytest.fixture
def labelled(table: Store) -> Store:
    """A table of a finished run, and of one that has published all and not ended."""
    label(table, start(table, "night-1"))
    finish(table, "night-1")
    label(table, start(table, "night-2"))
    return table


def test_each_run_has_its_lines_oldest_first(labelled: Store, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--table", labelled.uri])

    assert capfd.readouterr().out.splitlines() == [
        f"table {labelled.uri}: 2 runs, no process is writing it",
        f"night-1  finished  2026-11-22 18:15:03 UTC to 2026-11-22 18:15:03 UTC  detr@1  {FP32}",
        "  3 of 3 planned images are published, 2 detections, 1 error: truncated 1",
        f"night-2  labelling  2026-11-22 18:15:03 UTC  detr@1  {FP32}",
        "  3 of 3 planned images are published, 2 detections, 1 error: truncated 1",
        "  the last process ended without saying why, or is still working",
    ]


def stopped(table: Store, run_id: str, reason: Reason, *, hours: float, message: str = "", cost: float = 6.0) -> None:
    """Have an attempt that began `hours` after NOW and took two hours of four nodes."""

    began = NOW + timedelta(hours=hours)
    work = Work(busy_seconds=5_400.0, actor_seconds=7_200.0, requests=7_000, size_bytes=2_000_000)
    attempt = Attempt(began, began + timedelta(hours=2), reason, message, 5_000, work, 4, 8.0, cost)
    write_attempt(table, run_id, attempt, tail="0001")


def test_an_unfinished_run_says_how_its_attempts_ended_and_what_they_cost(
    labelled: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    def lines() -> list[str]:
        main(["--table", labelled.uri])
        return capfd.readouterr().out.splitlines()[5:]

    with holding(labelled, can_swap=True, token="a", wait_seconds=0.0, say=lambda _: None):
        assert lines() == []  # the first attempt: the first line names its process
    assert lines() == ["  the last process ended without saying why"]

    stopped(labelled, "night-2", "max_cost", hours=0)
    assert lines() == [
        "  1 attempt, which was stopped by --max-cost at 2026-11-22 20:15:03 UTC; a later process ended without saying "
        "why",
        "  1 recorded attempt: 5,000 images in 2 h, 7,000 requests, 2.0 MB, devices busy 75 %, 8 node hours, cost 6.00",
    ]
    record = json.loads(labelled.get(LEASE_KEY).data)  # of the process of that attempt
    labelled.put(LEASE_KEY, json.dumps(record | {"acquired_at": NOW.isoformat()}).encode())
    assert lines()[0] == "  1 attempt, which was stopped by --max-cost at 2026-11-22 20:15:03 UTC"

    stopped(labelled, "night-2", "error", hours=24, message="the store refused.")
    main(["--table", labelled.uri, "--json"])
    run = json.loads(capfd.readouterr().out)["runs"][1]
    assert [one["reason"] for one in run["attempts"]] == ["max_cost", "error"]
    assert run["attempts"][1]["ended_at"] == "2026-11-23T20:15:03+00:00"
    assert (run["spent"]["attempts"], run["spent"]["cost"]) == (2, 12.0)
    assert lines() == [
        "  2 attempts, of which the last ended with an error at 2026-11-23 20:15:03 UTC (the store refused)",
        "  2 recorded attempts: 10,000 images in 4 h, 14,000 requests, 4.0 MB, devices busy 75 %, 16 node hours, "
        "cost 12.00",
    ]
    with holding(labelled, can_swap=True, token="a", wait_seconds=0.0, say=lambda _: None):
        assert lines()[0].endswith("(the store refused); a process is working on it")


def test_who_writes_the_table_is_reported(table: Store, capfd: pytest.CaptureFixture[str]) -> None:
    with holding(table, can_swap=False, token="a", wait_seconds=0.0, say=lambda _: None):
        main(["--table", table.uri])

    assert f"table {table.uri}: 0 runs, being written by host " in capfd.readouterr().out


def test_json_is_one_document_of_the_same(labelled: Store, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--table", labelled.uri, "--json"])

    record = json.loads(capfd.readouterr().out)
    assert (record["table"], record["holder"]) == (labelled.uri, None)
    assert record["runs"][0] == {
        "run_id": "night-1",
        "state": "finished",
        "model": "detr@1",
        "started_at": "2026-11-22T18:15:03+00:00",
        "ended_at": "2026-11-22T18:15:03+00:00",
        "images_planned": 3,
        "rows": 3,
        "detections": 2,
        "errors": {"truncated": 1},
        "settings": FP32,
        "attempts": [],
        "spent": None,
    }
    assert (record["runs"][1]["run_id"], record["runs"][1]["ended_at"]) == ("night-2", None)


@pytest.mark.parametrize(("hours", "code"), [(25, 0), (27, 1), (None, 1)])
def test_the_documented_check_finds_that_no_run_has_ended(
    table: Store, tmp_path: Path, hours: int | None, code: int
) -> None:
    """Of docs/operations.md: a run that has ended, or none, beside one that has not."""
    text = (ROOT / "docs" / "operations.md").read_text()
    command = next(block for block in text.split("```\n")[1::2] if "hours=26" in block)
    if hours is not None:
        label(table, start(table, "night-1"))
        ended_at = datetime.now(UTC) - timedelta(hours=hours)
        finish_run(table, "night-1", now=ended_at, totals={"rows": 3, "detections": 2, "errors": {"truncated": 1}})
    label(table, start(table, "night-2"))
    program = tmp_path / "bin" / "ray-detr"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -m jobs.runs "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["/bin/sh", "-c", command.replace("s3://lake/detections", table.uri)],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(
        "the last run was finished: " + ("never" if hours is None else f"{ended_at:%Y-%m-%dT}")
    )


def test_the_newest_twenty_runs_are_listed_and_nothing_is_read_of_the_others(
    table: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 26):
        start(table, f"night-{number:02d}")
        finish(table, f"night-{number:02d}")
    got: list[str] = []
    get = type(table).get
    monkeypatch.setattr(type(table), "get", lambda self, key, **more: got.append(key) or get(self, key, **more))

    main(["--table", table.uri])
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == [
        f"table {table.uri}: 25 runs, no process is writing it",
        "5 older runs are not listed; --last 25 lists all",
    ]
    assert [line.split()[0] for line in lines[2::2]] == [f"night-{number:02d}" for number in range(6, 26)]
    assert not [key for key in got if "0000005" in key or "night-05" in key]
    assert len(got) == 41  # two for each run that is listed, and the lease

    main(["--table", table.uri, "--last", "25"])
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 51
    assert "older" not in lines[1]
    main(["--table", table.uri, "--json"])
    record = json.loads(capfd.readouterr().out)
    assert (record["older_runs"], len(record["runs"])) == (0, 25)
    main(["--table", table.uri, "--json", "--last", "1"])
    record = json.loads(capfd.readouterr().out)
    assert (record["older_runs"], [run["run_id"] for run in record["runs"]]) == (24, ["night-25"])


def test_a_damaged_record_stops_it_with_a_sentence(labelled: Store) -> None:
    labelled.put("_runs/_order/0000001.json", b"{")

    with pytest.raises(RayDetrError, match=r"_order/0000001\.json is damaged"):
        main(["--table", labelled.uri])


def test_a_whole_table_verifies_with_no_findings(labelled: Store, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--table", labelled.uri, "--verify"])

    assert capfd.readouterr().out == "verified: 2 of 2 files, 6 of 6 images (100.0%): no findings\n"


def test_every_finding_is_a_line_and_the_exit_code_is_1(labelled: Store, capfd: pytest.CaptureFixture[str]) -> None:
    labelled.put("data/export.parquet", b"")
    labelled.delete("data/night-1-00000.parquet")

    with pytest.raises(SystemExit) as left:
        run_command(main, ["--table", labelled.uri, "--verify"])

    out, err = capfd.readouterr()
    assert left.value.code == 1
    assert out.splitlines() == [
        f"{labelled.uri}/data/night-1-00000.parquet is missing: its 3 images have no row.",
        f"{labelled.uri}/data/export.parquet belongs to no run of this table. Move it out of data/.",
        "verified: 1 of 1 files, 3 of 3 images (100.0%): 2 findings",
    ]
    assert err.endswith(f"error: verification of table {labelled.uri} failed: 2 findings.\n")


def test_a_verification_that_time_ends_says_its_share_and_goes_on(
    labelled: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    labelled.put("data/night-1-00000.parquet", b"")
    line = ["--table", labelled.uri, "--verify", "--max-minutes", "1e-9"]

    with pytest.raises(RayDetrError, match="failed: 1 finding"):
        main(line)
    assert capfd.readouterr().out.splitlines()[1:] == [
        "verified: 1 of 2 files, 3 of 6 images (50.0%). The next --verify with --max-minutes continues from there"
    ]
    main(line)
    assert capfd.readouterr().out.splitlines() == [
        "verified: 2 of 2 files, 6 of 6 images (100.0%); earlier parts of this verification had 1 finding. "
        "The next --verify with --max-minutes continues with the search for duplicate rows"
    ]
    with pytest.raises(RayDetrError, match="failed: 1 finding"):
        main(line)


def test_one_run_is_verified_by_its_name_and_json_is_one_document(
    labelled: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["--table", labelled.uri, "--verify", "night-2", "--json"])

    assert json.loads(capfd.readouterr().out) == {
        "table": labelled.uri,
        "run_id": "night-2",
        "findings": [],
        "findings_before": 0,
        "files": 1,
        "files_total": 1,
        "images": 3,
        "images_total": 3,
        "is_complete": True,
    }


def test_the_unfinished_run_is_abandoned_and_its_rows_stay(labelled: Store, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--table", labelled.uri, "--abandon"])

    assert capfd.readouterr().out == (
        f"abandoned: run night-2 of table {labelled.uri} is sealed. Published rows stay, the other images are "
        "labelled by the next run\n"
    )
    assert [entry.key for entry in labelled.list("_runs/night-2/parts/")] == []
    main(["--table", labelled.uri, "--verify"])
    assert capfd.readouterr().out == "verified: 2 of 2 files, 6 of 6 images (100.0%): no findings\n"


def test_where_no_run_is_unfinished_nothing_is_abandoned(table: Store, capfd: pytest.CaptureFixture[str]) -> None:
    main(["--table", table.uri, "--abandon"])
    assert capfd.readouterr().out == (
        f"nothing to abandon: there is no table at {table.uri}: it has neither runs nor rows. Check the address.\n"
    )
    assert list(table.list()) == []

    label(table, start(table, "night-1"))
    finish(table, "night-1")
    main(["--table", table.uri, "--abandon"])
    assert capfd.readouterr().out == f"nothing to abandon: table {table.uri} has no unfinished run\n"
    main(["--table", table.uri, "--abandon", "night-1"])
    assert capfd.readouterr().out == f"nothing to abandon: run night-1 of table {table.uri} has ended\n"
    with pytest.raises(RayDetrError, match="has no run night-2"):
        main(["--table", table.uri, "--abandon", "night-2"])


def test_a_run_that_is_being_written_is_not_abandoned_and_the_exit_code_is_4(
    labelled: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        holding(labelled, can_swap=False, token="a", wait_seconds=0.0, say=lambda _: None),
        pytest.raises(SystemExit) as left,
    ):
        run_command(main, ["--table", labelled.uri, "--abandon"])

    assert left.value.code == 4
    assert f"error: table {labelled.uri} is being written by another process (host " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--max-minutes", "3"], "--max-minutes needs --verify"),
        (["--verify", "--max-minutes", "0"], "0 is not a number of minutes above 0"),
        (["--last", "0"], "0 is less than 1"),
        (["--last", "3", "--abandon"], "--last is for the list of runs"),
        (["--verify", "--abandon"], "not allowed with argument --verify"),
    ],
)
def test_what_is_wrong_with_the_line_is_wrong_use(
    table: Store, capfd: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--table", table.uri, *more])

    assert left.value.code == 2
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize("more", [[], ["--json"], ["--verify"]])
def test_a_table_that_is_not_there_is_refused(tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(UsageError, match=r"there is no table at file://.*/typo: it has neither runs nor rows"):
        main(["--table", str(tmp_path / "typo"), *more])


class Acting(Clock):
    """A clock, at each of whose sleeps another process does the next of these things."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        super().__init__((datetime.now(UTC) - Clock().now()).total_seconds())
        self.actions = list(actions)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.actions.pop(0)()


@contextmanager
def writing(table: Store) -> Iterator[None]:
    """Hold the table's lease."""
    with holding(table, can_swap=True, token="a", wait_seconds=0.0, say=lambda _: None):
        yield


def watched(table: Store, *actions: Callable[[], object]) -> tuple[Watched, list[Progress]]:
    shown: list[Progress] = []
    return watch_run(table, here=this_process(), clock=Acting(*actions), show=shown.append), shown


def test_a_run_of_another_process_is_watched_until_it_ends(table: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with writing(table):
        run = start(table, "night")
        found, shown = watched(table, lambda: label(table, run), lambda: finish(table, "night"))

    assert [(one.images, one.images_planned, one.is_planned) for one in shown] == [(0, 0, False), (3, 3, True)]
    assert (found.run, found.end is not None and found.end.state) == (run, "finished")

    main(["--table", table.uri, "--watch"])  # has ended
    out = capsys.readouterr().out
    assert out.startswith(f"no run of table {table.uri} is unfinished, and no process is writing it\n")
    assert "night  finished" in out


def test_a_watch_says_how_the_run_ended_and_its_exit_code(
    table: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_the_next_poll(action: Callable[[], object]) -> None:
        monkeypatch.setattr("pipelines.clock.SystemClock.sleep", lambda *_: action())

    with writing(table):
        start(table, "night-1")
        at_the_next_poll(lambda: finish(table, "night-1"))
        main(["--table", table.uri, "--watch", "--json"])
        ended = capsys.readouterr()
        assert "run night-1 finished at 2026-11-22 18:15:03 UTC\n" in ended.err
        assert json.loads(ended.out)["runs"][0]["state"] == "finished"

    with ExitStack() as process:

        def abandon() -> None:
            seal_run(table, run, now=NOW)
            process.close()

        process.enter_context(writing(table))
        run = start(table, "night-2")
        label(table, run)
        at_the_next_poll(abandon)
        with pytest.raises(
            RayDetrError, match=r"^run night-2 of table .* was sealed at 2026-11-22 18:15:03 UTC\. Publ"
        ):
            main(["--table", table.uri, "--watch"])
    assert "night-2  sealed" in capsys.readouterr().out


def test_a_process_that_seals_a_run_is_watched_in_its_next_run(table: Store) -> None:
    with writing(table):
        old = start(table, "night-1")
        found, shown = watched(
            table,
            lambda: seal_run(table, old, now=NOW),
            lambda: start(table, "night-2"),
            lambda: finish(table, "night-2"),
        )

    assert (found.run and found.run.run_id, found.end and found.end.state) == ("night-2", "finished")
    assert [one.stage for one in shown] == [
        "label", f"host {gethostname()}, pid {os.getpid()} has not begun a run yet", "label",
    ]  # fmt: skip


def test_a_run_whose_process_deletes_the_parts_has_finished(table: Store) -> None:
    with writing(table):
        run = start(table, "night")
        finish_run(table, "night", now=datetime.now(UTC), totals={"rows": 0, "detections": 0, "errors": {}})
        found, shown = watched(table)

    assert (found.run, found.end and found.end.state, shown) == (run, "finished", [])


def test_a_run_in_a_bucket_without_a_process_ends_the_watch_at_the_second_look() -> None:
    table = memory_store()
    with writing(table):
        run = start(table, "night")

    found, shown = watched(table, lambda: None)

    assert (found.run, found.end, len(shown)) == (run, None, 1)


def test_a_run_that_no_process_works_on_ends_the_watch_with_1(table: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(table, "night")
    found, shown = watched(table, lambda: None)
    assert (found.run, found.end, len(shown)) == (run, None, 1)

    with ExitStack() as successor:  # takes the lease over between two polls

        def leave() -> None:
            successor.close()
            finish(table, "night")

        found, shown = watched(table, lambda: successor.enter_context(writing(table)), lambda: None, leave)
    assert found.end is not None
    assert len(shown) == 3


def test_what_a_dead_run_is_told_by_names_what_to_do(
    table: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.labelling.watch.POLL_SECONDS", 0.0)
    start(table, "night")

    with pytest.raises(SystemExit) as left:
        run_command(main, ["--table", table.uri, "--watch"])

    out, err = capsys.readouterr()
    assert left.value.code == 1
    assert (
        f"error: no process works on run night of table {table.uri}, which is unfinished: the last process ended" in err
    )
    assert "night  planning" in out


@pytest.mark.parametrize("is_first_night", [True, False])
def test_a_process_that_has_not_begun_its_run_is_waited_for(table: Store, is_first_night: bool) -> None:
    if not is_first_night:
        start(table, "night-1")
        finish(table, "night-1")

    def begin_and_end() -> None:
        start(table, "night-2")
        finish(table, "night-2")

    with writing(table):
        found, shown = watched(table, lambda: None, begin_and_end)  # between two polls
        assert found.run is not None
        assert (found.run.run_id, found.end is not None and found.end.state) == ("night-2", "finished")
        assert {one.stage for one in shown} == {f"host {gethostname()}, pid {os.getpid()} has not begun a run yet"}
        assert len(shown) == 2


def test_a_process_that_ends_without_a_run_ends_the_watch(
    table: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as process:
        process.enter_context(writing(table))
        monkeypatch.setattr("pipelines.clock.SystemClock.sleep", lambda *_: process.close())
        main(["--table", table.uri, "--watch"])

    assert f"pid {os.getpid()} has ended without beginning a run of table" in capsys.readouterr().out


def test_without_a_lease_a_run_is_watched_as_long_as_it_may_have_a_process() -> None:
    table = memory_store()  # as a store that cannot keep one
    run = start(table, "night")

    found, shown = watched(table, *[lambda: None] * 360, lambda: label(table, run), *[lambda: None] * 800)

    assert (found.run, found.end) == (run, None)
    assert len(shown) == 361 + 720
