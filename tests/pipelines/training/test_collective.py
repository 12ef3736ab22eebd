"""What workers decide together: real processes over loopback; this file, run as a script, is one of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pipelines.training.collective import Collective

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers heard."""
    folder = tmp_path_factory.mktemp("collective")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], cwd=ROOT, env=environment)
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_sums_are_the_same_everywhere_and_exact(told: list[dict[str, Any]]) -> None:
    # 2**53 - 1 has no float32
    assert [one["sum"] for one in told] == [[3.0, float(2**53 - 1), 0.0]] * 2


@pytest.mark.slow
def test_values_are_gathered_by_rank_at_the_first_worker_only(told: list[dict[str, Any]]) -> None:
    assert [one["gathered"] for one in told] == [[{"rank": 0}, {"rank": 1}], []]


@pytest.mark.slow
def test_the_first_workers_value_is_spread(told: list[dict[str, Any]]) -> None:
    assert [one["broadcast"] for one in told] == ["of 0", "of 0"]
    assert [one["nothing"] for one in told] == [None, None]


@pytest.mark.slow
def test_a_worker_knows_its_place(told: list[dict[str, Any]]) -> None:
    assert [(one["rank"], one["workers"]) for one in told] == [(0, 2), (1, 2)]


@pytest.mark.slow
def test_a_silent_worker_is_not_waited_for_without_end(told: list[dict[str, Any]]) -> None:
    assert told[0]["waited_in_vain"] is True


def main(rank: int, folder: Path) -> None:
    """Be one of two workers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
                            timeout=timedelta(seconds=60))  # fmt: skip
    collective, impatient = Collective(seconds=60), Collective(seconds=1)
    heard: dict[str, Any] = {
        "rank": collective.rank,
        "workers": collective.workers,
        "sum": collective.sum([rank + 1, (2**53 - 1) * rank, 0]),
        "gathered": collective.gather({"rank": rank}),
        "broadcast": collective.broadcast(f"of {rank}"),
        "nothing": collective.broadcast(None if rank == 0 else "something"),
    }
    if rank == 0:
        try:
            impatient.sum([1.0])
        except RuntimeError:
            heard["waited_in_vain"] = True
    (folder / f"{rank}.json").write_text(json.dumps(heard))
    collective.sum([0.0])  # both are done
    dist.destroy_process_group()  # gloo's threads would want Python's lock while Python ends, which aborts the process


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
