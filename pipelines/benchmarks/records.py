"""Compute a record per variant from the trials of one case: costs, ratios within rounds, agreement, limits."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

from pipelines.benchmarks.config import Primary
from pipelines.benchmarks.figures import Spread, fixed_and_marginal, ratios, spread
from pipelines.benchmarks.rounds import Trial, Variant

CONTENDED = 1.1  # wall seconds per CPU second of one thread, above which other programs used the core


@dataclass(frozen=True, slots=True)
class Record:
    """The figures of one variant in one case. Times are seconds, memory is MB; None is not measured.

    Attributes:
        mode: of the benchmark.
        case: what all compared variants have in common: shape, batch, precision ...
        variant: its name.
        version: of the library.
        note: a note for readers.
        rounds: number of successful rounds.
        cpu_s_per_image: user and system CPU seconds, after warm-up.
        wall_s_per_image: wall seconds, after warm-up.
        fixed_cpu_s: CPU seconds that do not depend on the number of images: imports, loading, compiling, warm-up; the
            intercept of the fit if whole processes of two sizes were measured.
        total_cpu_s: of the whole process tree, largest size.
        total_wall_s: the same, wall seconds.
        peak_mb: peak memory of the process tree, largest size.
        seen: seconds from the start of the process to events such as "first shard".
        phases: CPU seconds by phase of the start.
        ratio: this variant's primary cost divided by the baseline's in the same round.
        baseline: name of the baseline.
        agreement: agreement of results with the reference, by name; None if unknown.
        gpu: of the median round.
        roofline_share: share of the card's largest possible number of images per second.
        usd_per_million: cost of a million images at the given price.
        cores: number of cores that it was charged for.
        load_average: of the machine when the trials began: smallest and largest.
        contended: other programs used the processor in at least one round.
        errors: of failed trials.
    """

    mode: str
    case: str
    variant: str
    version: str
    note: str
    rounds: int
    cpu_s_per_image: Spread | None = None
    wall_s_per_image: Spread | None = None
    fixed_cpu_s: Spread | None = None
    total_cpu_s: Spread | None = None
    total_wall_s: Spread | None = None
    peak_mb: Spread | None = None
    seen: Mapping[str, Spread] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    ratio: Spread | None = None
    baseline: str | None = None
    agreement: Mapping[str, Any] | None = None
    gpu: Mapping[str, Any] | None = None
    roofline_share: float | None = None
    usd_per_million: float | None = None
    cores: int | None = None
    load_average: tuple[float, float] = (0.0, 0.0)
    contended: bool = False
    errors: tuple[str, ...] = ()


def record(
    mode: str,
    case: str,
    variant: Variant,
    trials: Sequence[Trial],
    *,
    primary: Primary,
    threads: int,
    agreement: Mapping[str, Any] | None,
) -> Record:
    """Summarise the trials of one variant in one case, except ratio, roofline and price.

    Args:
        mode: of the benchmark.
        case: its name.
        variant: variant of all `trials`.
        trials: in any order, at one size or several.
        primary: the compared kind of cost.
        threads: number of threads of the subject.
        agreement: of the variant's results with the reference.
    """
    good = [trial for trial in trials if trial.error is None]
    errors = tuple(trial.error for trial in trials if trial.error is not None)
    loads = [trial.load_average for trial in trials]
    load = (min(loads), max(loads)) if loads else (0.0, 0.0)
    named = Record(mode, case, variant.name, variant.version, variant.note, 0, load_average=load, errors=errors)
    if not good:
        return named
    largest = max(trial.size for trial in trials)
    whole = [trial for trial in good if trial.size == largest]
    each = {kind: spread(list(by_round.values())) for kind, by_round in costs(good, largest=largest).items()}
    phases = [trial.returned["phases"] for trial in whole if trial.returned and "phases" in trial.returned]
    seen = {name for trial in whole for name in trial.seen}
    wall, cpu = each.get("wall_s_per_image"), each.get("cpu_s_per_image")
    timed = _timed(good) if threads == 1 and primary == "cpu" else []
    return replace(
        named,
        rounds=len({trial.round for trial in good}),
        cpu_s_per_image=cpu,
        wall_s_per_image=wall,
        fixed_cpu_s=each.get("fixed_cpu_s"),
        total_cpu_s=each.get("total_cpu_s"),
        total_wall_s=each.get("total_wall_s"),
        peak_mb=spread([trial.use.peak_bytes / 1e6 for trial in whole]) if whole else None,
        seen={name: spread([trial.seen[name] for trial in whole if name in trial.seen]) for name in sorted(seen)},
        phases={name: fmean(one.get(name, 0.0) for one in phases) for name in (phases[0] if phases else {})},
        agreement=agreement,
        gpu=_gpu(whole),
        contended=_waited_for_a_core(timed) if timed else load[1] > _cores(),
    )


def costs(trials: Sequence[Trial], *, largest: int) -> dict[str, dict[int, float]]:
    """Return the costs of one variant by kind and round: per image and fixed, or in total if there is one size.

    Kinds are `cpu_s_per_image`, `wall_s_per_image`, `fixed_cpu_s`, `total_cpu_s` and `total_wall_s`.

    Args:
        trials: those that succeeded.
        largest: the largest size of the case; a round whose trial of this size failed has no total cost.
    """
    found: dict[str, dict[int, float]] = {}

    def put(kind: str, number: int, value: float) -> None:
        found.setdefault(kind, {})[number] = value

    for number in sorted({trial.round for trial in trials}):
        these = [trial for trial in trials if trial.round == number]
        last = max(these, key=lambda trial: trial.size)
        if last.size == largest:
            put("total_cpu_s", number, last.use.cpu_s)
            put("total_wall_s", number, last.use.wall_s)
        steady = (last.returned or {}).get("steady")
        if steady is not None:
            put("cpu_s_per_image", number, steady["cpu_s"] / steady["images"])
            put("wall_s_per_image", number, steady["wall_s"] / steady["images"])
            put("fixed_cpu_s", number, sum((last.returned or {})["phases"].values()))
        elif len({trial.size for trial in these}) > 1:
            fixed, marginal = fixed_and_marginal([(trial.size, trial.use.cpu_s) for trial in these])
            put("fixed_cpu_s", number, fixed)
            put("cpu_s_per_image", number, marginal)
            put("wall_s_per_image", number, fixed_and_marginal([(one.size, one.use.wall_s) for one in these])[1])
    return found


def ratio(
    trials: Sequence[Trial], baseline: Sequence[Trial], *, primary: Primary, of: Literal["image", "total"]
) -> Spread | None:
    """Return the cost of `trials` divided by that of `baseline`, round by round; None without a common round."""
    kind = {"image": f"{primary}_s_per_image", "total": f"total_{primary}_s"}[of]
    largest = max((trial.size for trial in [*trials, *baseline]), default=0)
    good = [[trial for trial in some if trial.error is None] for some in (trials, baseline)]
    mine, theirs = (costs(some, largest=largest).get(kind, {}) for some in good)
    found = ratios(mine, theirs)
    return spread(found) if found else None


def _timed(trials: Sequence[Trial]) -> list[Mapping[str, float]]:
    """Return the CPU and wall seconds that subjects timed themselves; whole commands also wait, so they do not."""
    returned = [trial.returned or {} for trial in trials]
    return [one.get("steady") or one["call"] for one in returned if one.get("steady") or one.get("call")]


def _waited_for_a_core(timed: Sequence[Mapping[str, float]]) -> bool:
    return any(one["wall_s"] > CONTENDED * one["cpu_s"] for one in timed)


def _gpu(trials: Sequence[Trial]) -> Mapping[str, Any] | None:
    found = [
        trial.returned["steady"]["gpu"]
        for trial in trials
        if trial.returned and trial.returned.get("steady", {}).get("gpu")
    ]
    return found[len(found) // 2] if found else None


def _cores() -> int:
    return len(os.sched_getaffinity(0))
