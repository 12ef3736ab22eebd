"""How many workers train on which cluster."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RayDetrError
from pipelines.training.worker_group import choose_group


@pytest.mark.parametrize(
    ("nodes", "asked", "device", "micro_batches", "expected"),
    [
        # a machine without GPU: one worker a core, no more than there are micro-batches
        ([{"CPU": 4}], (None, None), "auto", 8, (1, 4, {"CPU": 1.0}, 1)),
        ([{"CPU": 16}, {"CPU": 2}], (None, None), "auto", 8, (1, 8, {"CPU": 1.0}, 1)),
        ([{"CPU": 4}], (3, 3), "auto", 8, (3, 3, {"CPU": 1.0}, 1)),
        ([{"CPU": 4}], (2, None), "auto", 8, (2, 4, {"CPU": 1.0}, 1)),
        ([{"CPU": 4}], (None, 2), "auto", 8, (1, 2, {"CPU": 1.0}, 1)),
        # more than there are now: the cluster may grow
        ([{"CPU": 4}], (2, 6), "auto", 8, (2, 6, {"CPU": 1.0}, 1)),
        # GPUs: a worker each, with its share of the cores
        ([{"CPU": 16, "GPU": 2}], (None, None), "auto", 8, (1, 2, {"CPU": 8.0, "GPU": 1.0}, 8)),
        ([{"CPU": 16, "GPU": 2}], (None, None), "cuda", 1, (1, 1, {"CPU": 8.0, "GPU": 1.0}, 8)),
        ([{"CPU": 16, "GPU": 2}], (None, None), "cpu", 8, (1, 8, {"CPU": 1.0}, 1)),
        # cores of nodes without GPU are for others
        ([{"CPU": 16, "GPU": 1}, {"CPU": 64}], (None, None), "auto", 8, (1, 1, {"CPU": 16.0, "GPU": 1.0}, 16)),
        # unlike nodes: what fits the poorest
        ([{"CPU": 64, "GPU": 8}, {"CPU": 3, "GPU": 1}], (None, None), "auto", 16, (1, 9, {"CPU": 3.0, "GPU": 1.0}, 3)),
        # fewer cores than GPUs
        ([{"CPU": 2, "GPU": 4}], (None, None), "auto", 8, (1, 2, {"CPU": 1.0, "GPU": 1.0}, 1)),
    ],
)
def test_workers_fit_the_cluster_and_the_step(
    nodes: list[dict[str, float]],
    asked: tuple[int | None, int | None],
    device: str,
    micro_batches: int,
    expected: tuple[int, int, dict[str, float], int],
) -> None:
    group = choose_group(nodes, *asked, device=device, micro_batches=micro_batches, threads=None)

    assert (group.least, group.most, dict(group.resources), group.threads) == expected
    assert group.uses_gpu == ("GPU" in expected[2])


@pytest.mark.parametrize(
    ("nodes", "asked", "device", "micro_batches", "sentence"),
    [
        ([{"CPU": 4}], (None, None), "cuda", 8, "no node of the cluster has a GPU"),
        ([{"CPU": 4}], (5, None), "auto", 8, "5 workers do not fit: each needs 1 CPU, and the cluster has room for 4"),
        ([{"CPU": 64, "GPU": 2}], (3, 3), "auto", 8, "3 workers do not fit: each needs 1 GPU, .* has room for 2"),
        ([{"CPU": 64}], (9, 9), "auto", 8, "9 workers are too many for a step of 8 micro-batches"),
        ([{"GPU": 2}], (None, None), "auto", 8, "do not fit"),
        ([], (None, None), "auto", 8, "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(
    nodes: list[dict[str, float]], asked: tuple[int | None, int | None], device: str, micro_batches: int, sentence: str
) -> None:
    with pytest.raises(RayDetrError, match=sentence):
        choose_group(nodes, *asked, device=device, micro_batches=micro_batches, threads=None)


@given(
    nodes=st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 64)}, optional={"GPU": st.integers(0, 8)}), max_size=4),
    least=st.none() | st.integers(1, 6),
    micro_batches=st.integers(1, 12),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
)
def test_a_chosen_group_can_be_placed(
    nodes: list[dict[str, int]], least: int | None, micro_batches: int, device: str
) -> None:
    try:
        group = choose_group(nodes, least, None, device=device, micro_batches=micro_batches, threads=None)
    except RayDetrError:
        return

    assert (least or 1) == group.least <= group.most <= micro_batches
    free = [dict(node) for node in nodes]
    for _ in range(group.most):
        node = next(
            node for node in free if all(node.get(name, 0) >= wanted for name, wanted in group.resources.items())
        )
        for name, wanted in group.resources.items():
            node[name] -= wanted  # type: ignore[assignment]


def test_workers_that_would_have_nothing_to_do_are_counted() -> None:
    nodes = [{"CPU": 64, "GPU": 16}]

    group = choose_group(nodes, None, None, device="auto", micro_batches=8, threads=None)

    assert (group.most, group.idle) == (8, 8)
