"""One benchmark: its configuration, the alternating rounds, and the report."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipelines.benchmarks.config import HOW_TO_GET, PEERS, BenchConfig
from pipelines.benchmarks.machine import installed, machine_facts
from pipelines.benchmarks.records import Record, ratio, record
from pipelines.benchmarks.report import Report, to_json, to_markdown
from pipelines.benchmarks.roofline import known_card, most_images_per_s, usd_per_million
from pipelines.benchmarks.rounds import OURS, Runner, Trial, Variant, alternate
from pipelines.benchmarks.timing import FREED_MEMORY_NOTE, can_keep_freed_memory
from pipelines.errors import RayDetrError


@dataclass(frozen=True, slots=True)
class Case:
    """Variants to compare.

    Attributes:
        name: what all of them have in common.
        variants: the baseline among them.
        agreement: returns the agreement of a variant's results with the reference, or None; called after its trials.
        sizes: numbers of images, each measured in a separate process; `(0,)` if the subject decides.
        of: whether to compare the cost per image or the total cost.
        shape: (height, width) for the network, for the roofline; None if it varies.
        prepare: creates settings for one trial: (variant, round, size) to settings.
        watch: for one trial: (variant, round, size) to a function that is called while it runs.
        after: called with every trial that succeeded.
    """

    name: str
    variants: tuple[Variant, ...]
    agreement: Callable[[Variant, Sequence[Trial]], Mapping[str, Any] | None]
    sizes: tuple[int, ...] = (0,)
    of: Literal["image", "total"] = "image"
    shape: tuple[int, int] | None = None
    prepare: Callable[[Variant, int, int], Mapping[str, Any]] | None = None
    watch: Callable[[Variant, int, int], Callable[[float], Mapping[str, float]]] | None = None
    after: Callable[[Variant, Trial], None] | None = None


@dataclass(slots=True)
class Bench:
    """One benchmark while it runs.

    Attributes:
        config: the configuration.
        folder: working folder, removed at the end.
        on_progress: called with a line for each measurement.
        missing: sentences about what is requested and not measured.
        reference: the reference of the agreement.
        records: records of the cases so far.
    """

    config: BenchConfig
    folder: Path
    on_progress: Callable[[str], None]
    missing: list[str] = field(default_factory=list)
    reference: str = ""
    records: list[Record] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")

    @property
    def runner(self) -> Runner:
        """The runner of subjects."""
        return Runner(self.folder, 60 * self.config.timeout_minutes, self._say)

    def has(self, peer: str) -> bool:
        """Return whether a peer is requested and installed; report each missing one once."""
        if peer not in self.config.peers:
            return False
        lacking = [package for package in PEERS[peer] if installed(package) is None]
        if lacking:
            self.leave_out(f"{peer}: {', '.join(lacking)} not installed ({HOW_TO_GET})")
        return not lacking

    def leave_out(self, sentence: str) -> None:
        """Report once what is requested and not measured, and why."""
        if sentence not in self.missing:
            self.missing.append(sentence)

    def setup(self, subject: str, settings: Mapping[str, Any], *, name: str = "setup", code: Path = OURS) -> None:
        """Run a subject that prepares something, with the code of a checkout.

        Raises:
            SubjectFailed: the subject failed.
        """
        trial = self.runner.run(Variant(name, subject, settings, code=code))
        if trial.error is not None:
            raise SubjectFailed(f"{subject} failed: {trial.error}")

    def with_before(self, variant: Variant) -> list[Variant]:
        """Return one of our variants, and the same of the other checkout if one is given.

        The other one has no note about freed memory if its code cannot keep it.
        """
        if self.config.against is None:
            return [variant]
        name, code = variant.name.replace("ours", "before", 1), self.config.against.resolve()
        is_wrong = variant.note == FREED_MEMORY_NOTE and not can_keep_freed_memory(code)
        note = "" if is_wrong else variant.note
        return [variant, replace(variant, name=name, code=code, baseline=variant.name, note=note)]

    def run_case(self, case: Case) -> None:
        """Measure all rounds of a case and add its records."""
        config = self.config
        trials: dict[str, list[Trial]] = {variant.name: [] for variant in case.variants}
        for number, (variant, size) in alternate(
            [(variant, size) for variant in case.variants for size in case.sizes], config.rounds
        ):
            trial = self.runner.run(
                variant,
                number=number,
                size=size,
                settings={
                    "found": found_file(variant.name),
                    **(case.prepare(variant, number, size) if case.prepare else {}),
                },
                watch=case.watch(variant, number, size) if case.watch else None,
            )
            trials[variant.name].append(trial)
            if case.after is not None and trial.error is None:
                case.after(variant, trial)
        for variant in case.variants:
            self.records.append(self._record(case, variant, trials))
        self.write()

    def report(self) -> Report:
        """Return the report so far."""
        return Report(
            mode=self.config.mode,
            command=self.config.command,
            date=self.date,
            machine=machine_facts(),
            records=tuple(self.records),
            missing=tuple(self.missing),
            reference=self.reference,
            seconds=time.monotonic() - self.began,
            price=self._price(),
        )

    def write(self) -> None:
        """Write the report so far to the requested folder.

        Raises:
            RayDetrError: it cannot be written.
        """
        out = self.config.out
        if out is None:
            return
        report = self.report()
        try:
            out.mkdir(parents=True, exist_ok=True)
            for name, text in (
                (f"{report.mode}.json", to_json(report)),
                (f"{report.mode}.md", to_markdown(report) + "\n"),
            ):
                partial = out / f"{name}.part"
                partial.write_text(text)
                partial.replace(out / name)
        except OSError as error:
            raise RayDetrError(f"figures cannot be written to {out}: {error.strerror or error}.") from error

    def _record(self, case: Case, variant: Variant, trials: Mapping[str, Sequence[Trial]]) -> Record:
        config = self.config
        good = [trial for trial in trials[variant.name] if trial.error is None]
        found = record(
            config.mode,
            case.name,
            variant,
            trials[variant.name],
            primary=config.primary,
            threads=variant.threads,
            agreement=case.agreement(variant, good) if good else None,
        )
        compared = None
        if variant.baseline in trials:
            compared = ratio(trials[variant.name], trials[variant.baseline], primary=config.primary, of=case.of)
        found = replace(found, ratio=compared, baseline=variant.baseline)
        each = found.wall_s_per_image
        if each is None or each.median <= 0:
            return found
        if config.price_per_hour is not None:
            machine = machine_facts()["cores"]
            cores = machine if config.primary == "wall" else variant.cores(machine)  # on a GPU, it pays for the machine
            price = config.price_per_hour * cores / machine
            found = replace(found, usd_per_million=usd_per_million(each.median, price), cores=cores)
        card = known_card(machine_facts()["gpu"] or "") if config.primary == "wall" and case.shape else None
        if card is not None and case.shape is not None:
            found = replace(found, roofline_share=1 / each.median / most_images_per_s(card, *case.shape))
        return found

    def _price(self) -> str:
        priced = {one.cores for one in self.records if one.usd_per_million is not None}
        if not priced:
            return ""
        price, machine = f"{self.config.price_per_hour:g} USD an hour for the machine", machine_facts()["cores"]
        if priced == {machine}:
            return price
        return f"{price}; a row pays for its share of the {machine} cores, as if the others did the same work"

    def _say(self, trial: Trial) -> None:
        what = f"{trial.variant}, round {trial.round + 1}" + (f", {trial.size} images" if trial.size else "")
        if trial.error is not None:
            self.on_progress(f"{what}: failed: {trial.error.splitlines()[-1][:200]}")
        else:
            self.on_progress(f"{what}: {trial.use.cpu_s:.1f} CPU s, {trial.use.wall_s:.1f} s")


class SubjectFailed(Exception):
    """A subject that prepares a benchmark failed; the message ends with its output."""


def found_file(variant: str) -> str:
    """Return the name of the file with a variant's results."""
    return "found_" + "".join(letter if letter.isalnum() else "_" for letter in variant) + ".npz"


@contextlib.contextmanager
def opened(config: BenchConfig, on_progress: Callable[[str], None]) -> Iterator[Bench]:
    """Open a benchmark with a working folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="ray-detr-bench-") as folder:
        yield Bench(config, Path(folder), on_progress)


def read_names(model: Path) -> dict[str, int]:
    """Return class indices by name, from the config.json of a model folder."""
    labels = json.loads((model / "config.json").read_text())["id2label"]
    return {name: int(index) for index, name in labels.items()}
