"""Records as JSON and as Markdown tables."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.benchmarks.figures import Spread, is_shown
from pipelines.benchmarks.records import Record

SCHEMA = 2  # version of the JSON document; incremented when a field changes its meaning
NO_AGREEMENT = "not printed: its agreement with the reference is not known"


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one call.

    Attributes:
        mode: of the benchmark.
        command: the measuring command.
        date: start time, UTC.
        machine: of `machine.machine_facts`.
        records: one for each variant and case.
        missing: what is requested and not measured, with the reason.
        reference: the reference of the agreement.
        seconds: total wall time.
        price: what `usd_per_million` was computed from; empty without a price.
    """

    mode: str
    command: str
    date: str
    machine: Mapping[str, Any]
    records: Sequence[Record]
    missing: Sequence[str] = ()
    reference: str = ""
    seconds: float = 0.0
    price: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """One sentence for each variant that has no figure because it failed."""
        return [
            f"{one.case}, {one.variant}: {one.errors[0].splitlines()[-1][:300]}"
            for one in self.records
            if one.rounds == 0 and one.errors
        ]


def to_json(report: Report) -> str:
    """Return the report as a JSON document with the version of its layout."""
    return json.dumps({"schema": SCHEMA, **asdict(report)}, indent=1)


def to_markdown(report: Report) -> str:
    """Return the report as Markdown: command and machine, then a table for each case."""
    machine = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    flags = ", ".join(machine["cpu_flags"]) or "none of AVX2, AVX-512, bf16"
    lines = [
        f"## {report.mode}, {report.date}",
        "",
        f"- command: `{report.command}`",
        f"- processor: {machine['cpu']}, {machine['cores']} cores, {flags}; {machine['memory_gib']} GiB of memory",
        f"- GPU: {machine['gpu'] or 'none'}",
        f"- software: Python {machine['python']}, {packages}; {machine['system']}",
    ]
    if report.reference:
        lines.append(f"- agreement with: {report.reference}")
    if report.price:
        lines.append(f"- USD per million images: {report.price}")
    lines += [f"- not measured: {sentence}" for sentence in report.missing]
    for case in dict.fromkeys(one.case for one in report.records):
        lines += ["", f"### {case}", "", *_table([one for one in report.records if one.case == case])]
    lines += [
        "",
        f"The whole benchmark took {report.seconds:.0f} s. Values are medians of the rounds [smallest, largest]. A "
        "ratio ",
    ]
    lines[-1] += "is this row's cost divided by that of its baseline in the same round; `~` marks one that spans 1.00."
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a figure with three significant digits: `0.00123`, `1.23`, `1,230`."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def ranged(value: Spread | None, *, scale: float = 1.0) -> str | None:
    """Return `median [least, most]`, or only the median with one round."""
    if value is None:
        return None
    median, least, most = (number(scale * one) for one in (value.median, value.least, value.most))
    return median if value.least == value.most else f"{median} [{least}, {most}]"


def _table(records: Sequence[Record]) -> list[str]:
    rows = [[cell(one) for _, cell in _COLUMNS] for one in records]
    shown = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    lines = [
        "| " + " | ".join(_COLUMNS[index][0] for index in shown) + " |",
        "|" + "---|" * len(shown),
    ]
    lines += ["| " + " | ".join(row[index] or "" for index in shown) + " |" for row in rows]
    return lines


def _if_agreed(cell: Callable[[Record], str | None]) -> Callable[[Record], str | None]:
    """Omit a speed if it is not known whether the results are correct."""
    return lambda one: cell(one) if one.agreement is not None else None


def _rate(one: Record) -> str | None:
    wall = one.wall_s_per_image
    if wall is None or wall.least <= 0:
        return None
    return ranged(Spread(1 / wall.median, 1 / wall.most, 1 / wall.least))


def _ratio(one: Record) -> str | None:
    if one.ratio is None:
        return None
    mark = "" if is_shown(one.ratio) or one.ratio.least == one.ratio.most == 1 else "~ "
    of = f" of {one.baseline}" if one.baseline != "ours" else ""
    return f"{mark}{one.ratio.median:.2f} [{one.ratio.least:.2f}, {one.ratio.most:.2f}]{of}"


def _agreement(one: Record) -> str | None:
    if one.agreement is None:
        return None
    return ", ".join(f"{name} {_value(value)}" for name, value in one.agreement.items())


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else "not measured" if value is None else str(value)


def _gpu(one: Record) -> str | None:
    if not one.gpu:
        return None
    clock = one.gpu.get("sm_clock_mhz", {}).get("median")
    parts = [
        f"{clock:.0f} MHz" if clock else "",
        f"busy {one.gpu['busy_share']:.2f}" if one.gpu.get("busy_share") is not None else "",
        f"{one.gpu['peak_mb']:,.0f} MB" if one.gpu.get("peak_mb") else "",
        f"throttled {', '.join(one.gpu['throttle_reasons'])}" if one.gpu.get("throttle_reasons") else "",
    ]
    return ", ".join(part for part in parts if part) or None


def _notes(one: Record) -> str | None:
    notes = [one.note] if one.note else []
    if one.errors:
        notes.append(f"failed {len(one.errors)} times: {one.errors[0].splitlines()[-1][:160]}")
    elif one.agreement is None:
        notes.append(NO_AGREEMENT)
    if one.contended:
        notes.append("contended")
    if one.load_average[1]:
        notes.append(f"load {one.load_average[0]:.1f}-{one.load_average[1]:.1f}")
    return "; ".join(notes).replace("|", "/") or None


_COLUMNS: tuple[tuple[str, Callable[[Record], str | None]], ...] = (
    ("variant", lambda one: f"{one.variant} {one.version}".strip()),
    ("rounds", lambda one: str(one.rounds)),
    ("CPU s/image", _if_agreed(lambda one: ranged(one.cpu_s_per_image))),
    ("images/s", _if_agreed(_rate)),
    ("ratio", _if_agreed(_ratio)),
    ("fixed CPU s", _if_agreed(lambda one: ranged(one.fixed_cpu_s))),
    ("process tree CPU s", _if_agreed(lambda one: ranged(one.total_cpu_s))),
    ("wall s", _if_agreed(lambda one: ranged(one.total_wall_s))),
    ("events, s", _if_agreed(lambda one: ", ".join(f"{name} {ranged(at)}" for name, at in one.seen.items()))),
    ("peak MB", _if_agreed(lambda one: ranged(one.peak_mb))),
    ("agreement", _agreement),
    ("GPU", _gpu),
    ("of the roofline", _if_agreed(lambda one: None if one.roofline_share is None else f"{one.roofline_share:.2f}")),
    (
        "USD per million",
        _if_agreed(lambda one: None if one.usd_per_million is None else f"{one.usd_per_million:.2f}"),
    ),
    ("cores paid for", _if_agreed(lambda one: None if one.cores is None else str(one.cores))),
    ("notes", _notes),
)
