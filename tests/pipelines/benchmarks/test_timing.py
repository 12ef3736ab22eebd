from pipelines.benchmarks.timing import Phases, steady


def test_a_batch_of_each_length_is_warm_before_the_steady_state() -> None:
    called: list[int] = []

    spent = steady(
        lambda batch: called.append(len(batch)), [[1, 2], [3, 4], [5]], device="cpu", seconds=0.0, phases=Phases()
    )

    assert spent.images == 5
    assert called[-3:] == [2, 2, 1]
    assert called[:-3].count(1) >= 2
    assert called[0] == 2
