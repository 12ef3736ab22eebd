"""Run a benchmark by its mode."""

from collections.abc import Callable, Iterator, Mapping

from pipelines.benchmarks.benchmark import Bench, Case, opened
from pipelines.benchmarks.command_cases import evaluate_cases, label_cases, start_cases
from pipelines.benchmarks.config import PEERS_OF, BenchConfig, Mode
from pipelines.benchmarks.library_cases import decode_cases, model_cases, train_cases
from pipelines.benchmarks.report import Report

CASES: Mapping[Mode, Callable[[Bench], Iterator[Case]]] = {
    "model": model_cases,
    "label": label_cases,
    "train": train_cases,
    "decode": decode_cases,
    "evaluate": evaluate_cases,
    "start": start_cases,
}


def run_benchmark(config: BenchConfig, *, on_progress: Callable[[str], None]) -> Report:
    """Measure one mode and return its report.

    Args:
        config: what is asked for.
        on_progress: called with a line for each measurement.

    Raises:
        SubjectFailed: the preparation of the benchmark failed.
    """
    with opened(config, on_progress) as bench:
        for peer in config.peers:
            if peer in PEERS_OF[config.mode]:
                bench.has(peer)  # reports missing peers
        for case in CASES[config.mode](bench):
            bench.run_case(case)
        bench.write()
        return bench.report()
