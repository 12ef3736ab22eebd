"""Any sequence of changes, runs, deaths, models and options ends in the table that a few lines of Python predict."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.config import Selection
from pipelines.labelling.run import find_unfinished, list_runs
from pipelines.store import StoreEntry
from pipelines.table.schema import TRANSIENT_KINDS
from tests.pipelines.labelling.runs import begin_as_an_earlier_release
from tests.simulation.world import Crash, Fault, World, Writer, small_segments

LONG = "SIMULATION_SEEDS" in os.environ  # `make simulate`: other sequences each time
MODELS = ("detr@1", "detr@2")
URIS = [f"s3://lake/{number}.jpg" for number in range(6)]
VERSIONS = ["v0", "v1", "v2", "truncated 0", "crashed 1", "fetch_failed 0", "denied 1"]

THRESHOLDS = [0.5, 0.5, 0.9]

Line = tuple[str, str | None, str, float, str]
"""The URI, etag, model, threshold and kind ("ok", or of the error) of a row."""


class Table(RuleBasedStateMachine):
    """Runs over a lake that changes, beside a model of the table: the rows that it must have, counted."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World({})
        self.rows: Counter[Line] = Counter()
        self.ever: set[tuple[str, str]] = set()  # versions that the lake has had

    @initialize(lake=st.dictionaries(st.sampled_from(URIS), st.sampled_from(VERSIONS)), is_earlier=st.booleans())
    def begin(self, lake: dict[str, str], is_earlier: bool) -> None:
        if is_earlier:
            begin_as_an_earlier_release(self.world.objects)
        self.world.lake.update(lake)
        self.ever |= set(lake.items())

    @rule(uri=st.sampled_from(URIS), version=st.sampled_from(VERSIONS))
    def put(self, uri: str, version: str) -> None:
        self.world.lake[uri] = version
        self.ever.add((uri, version))

    @rule(uri=st.sampled_from(URIS))
    def delete(self, uri: str) -> None:
        self.world.lake.pop(uri, None)

    @precondition(lambda self: find_unfinished(self.world.objects) is None)
    @rule(
        model=st.sampled_from(MODELS),
        threshold=st.sampled_from(THRESHOLDS),
        relabel=st.booleans(),
        retry_errors=st.sampled_from(["transient", "all"]),
        new_run=st.booleans(),
    )
    def run(self, model: str, threshold: float, relabel: bool, retry_errors: Any, new_run: bool) -> None:
        """A night without trouble: each image that has no row of this model and threshold gets it, nothing else does.

        A threshold that no rows of the model have is refused where it has others, unless it is to label again.
        """
        selection = Selection(retry_errors=retry_errors)
        known = self.thresholds(model)
        if known and threshold not in known and not relabel:
            before = self.without_parts()
            with pytest.raises(
                UsageError, match=rf"labelled by {model} with other settings \(threshold 0\..*--relabel"
            ):
                self.writer(model, threshold).start(new_run=new_run, selection=selection)
            assert self.without_parts() == before
            return
        wanted = {
            (uri, etag, model, threshold, _kind(etag))
            for uri, etag in self.world.lake.items()
            if not any(
                count and line[:4] == (uri, etag, model, threshold) and _is_settled(line[4], retry_errors)
                for line, count in self.rows.items()
            )
        }
        finished = self.writer(model, threshold, relabel).start(new_run=new_run, selection=selection)
        self.rows.update(wanted)
        assert not finished.resumed
        assert finished.planned.images == len(wanted)
        assert finished.planned.labelled == len(self.world.lake) - len(wanted)
        assert self.lines() == self.rows

    @rule(
        model=st.sampled_from(MODELS),
        threshold=st.sampled_from(THRESHOLDS),
        call=st.integers(0, 90),
        fault=st.sampled_from(["crash before", "crash after"]),
        new_run=st.booleans(),
        uri=st.sampled_from(URIS),
        version=st.sampled_from(VERSIONS),
    )
    def die(self, model: str, threshold: float, call: int, fault: Fault, new_run: bool, uri: str, version: str) -> None:
        """A start dies at some call, and an image changes in that moment."""
        place = self.world.calls + 1 + call
        self.world.before_call = lambda _writer, _call: fault if self.world.calls == place else None
        try:
            self.writer(model, threshold, relabels=True).start(new_run=new_run)
        except Crash:
            self.put(uri, version)
        except RayDetrError as stopped:
            assert "used another configuration (" in str(stopped)  # noqa: PT017 - one of three ways
        finally:
            self.world.before_call = lambda _writer, _call: None
        self.take_over()

    @precondition(lambda self: find_unfinished(self.world.objects) is not None)
    @rule()
    def resume(self) -> None:
        run = find_unfinished(self.world.objects)
        assert run is not None
        threshold = float(str(run.configuration["threshold"]))
        finished = self.writer(run.model, threshold, relabels=True).start()
        self.take_over()
        # a run whose seal was begun is sealed by it, and another one begun
        assert (finished.run.run_id == run.run_id) == finished.resumed
        assert find_unfinished(self.world.objects) is None

    @precondition(lambda self: find_unfinished(self.world.objects) is not None)
    @rule(threshold=st.sampled_from([0.1, 0.2]), other_model=st.booleans())
    def ask_for_something_else(self, threshold: float, other_model: bool) -> None:
        run = find_unfinished(self.world.objects)
        assert run is not None
        model = next(one for one in MODELS if one != run.model) if other_model else run.model
        if any(entry.key == f"_runs/{run.run_id}/sealing.json" for entry in self.world.objects.list("_runs/")):
            return  # it is not resumed, whoever asks
        before = list(self.world.objects.list())
        with pytest.raises(
            RayDetrError, match=rf"the unfinished run {run.run_id} used another configuration \(.*now"
        ) as stopped:
            self.writer(model, threshold).start()
        assert ("model detr@" in str(stopped.value)) == other_model
        assert f"threshold {run.configuration['threshold']}, now {threshold}" in str(stopped.value)
        assert list(self.world.objects.list()) == before

    @invariant()
    def one_row_for_each_version(self) -> None:
        self.world.read()
        numbers = [run.number for run in list_runs(self.world.objects)]
        assert numbers == list(range(1, len(numbers) + 1))

    def teardown(self) -> None:
        """Whatever has happened: one more night and the table is whole."""
        if find_unfinished(self.world.objects) is not None:
            self.resume()
        for model in MODELS:
            threshold = next(iter(self.thresholds(model)), 0.5)
            self.run(model, threshold, relabel=False, retry_errors="transient", new_run=False)

    def writer(self, model: str, threshold: float = 0.5, relabels: bool = False) -> Writer:
        self.world.clock.seconds += 1
        return Writer(self.world, model=model, threshold=threshold, relabels=relabels)

    def without_parts(self) -> list[StoreEntry]:
        """Return all objects but the parts of ended runs: each start removes those that a dead one has left."""
        return [entry for entry in self.world.objects.list() if "/parts/" not in entry.key]

    def thresholds(self, model: str) -> list[float]:
        """Return the thresholds that rows of a model have."""
        return sorted({round(row["threshold"], 6) for row in self.world.read() if row["model"] == model})

    def take_over(self) -> None:
        """Take the rows of a start that died, and of the one that resumed it, into the model: of what was read."""
        lines = self.lines()
        assert not self.rows - lines, "rows vanished"
        for uri, etag, _, _, kind in lines - self.rows:
            if etag is None:
                assert kind == "missing"
            else:
                assert (uri, etag) in self.ever
                # an image that changed back to a version of before has an error of a transient kind instead
                assert kind in (_kind(etag), "fetch_failed")
        self.rows = lines

    def lines(self) -> Counter[Line]:
        return Counter(
            (row["uri"], row["etag"], row["model"], round(row["threshold"], 6), row["error_kind"] or "ok")
            for row in self.world.read()
        )


def _kind(etag: str) -> str:
    return "ok" if etag.startswith("v") else etag.split()[0]


def _is_settled(kind: str, retry_errors: str) -> bool:
    return kind == "ok" or (kind not in TRANSIENT_KINDS and retry_errors == "transient")


@pytest.mark.slow
def test_any_sequence_of_runs_ends_in_the_table_of_the_model() -> None:
    with small_segments():
        run_state_machine_as_test(
            Table,
            settings=settings(
                max_examples=1_000 if LONG else 50,
                stateful_step_count=25,
                derandomize=not LONG,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
