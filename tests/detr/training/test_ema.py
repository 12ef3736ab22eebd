import pytest
import torch

from detr.checkpoints.layouts import CheckpointError
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from detr.training.ema import MovingAverage

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (8,), (1,), norm="batch"),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    queries=3,
)
BIAS = "class_embed.bias"
MEAN = "backbone.0.body.bn1.running_mean"
COUNTER = "backbone.0.body.bn1.num_batches_tracked"


@torch.no_grad()
def fill(model: Detr, value: float) -> Detr:
    for name in (BIAS, MEAN, COUNTER):
        model.state_dict()[name].fill_(value)
    return model


def first(average: MovingAverage, name: str) -> float:
    return float(average.model.state_dict()[name].flatten()[0])


def test_the_first_steps_are_forgotten_faster_and_the_norms_statistics_are_averaged_too() -> None:
    model = fill(Detr(TINY), 0)
    average = MovingAverage(model, decay=0.998)

    average.update(fill(model, 20))
    assert first(average, BIAS) == first(average, MEAN) == pytest.approx(19)  # 1/20 of the old

    average.update(fill(model, 40))
    assert first(average, BIAS) == first(average, MEAN) == pytest.approx(19 * 2 / 21 + 40 * 19 / 21)
    assert first(average, COUNTER) == 40  # a count is not averaged


def test_in_the_long_run_the_decay_is_the_one_that_was_asked_for() -> None:
    model = fill(Detr(TINY), 0)
    average = MovingAverage(model, decay=0.5)
    average.updates = 1000

    average.update(fill(model, 1))

    assert first(average, BIAS) == pytest.approx(0.5)


def test_the_average_is_in_evaluation_mode_and_apart_from_the_model() -> None:
    model = fill(Detr(TINY).train(), 1)
    average = MovingAverage(model, decay=0.9)

    fill(model, 7)

    assert first(average, BIAS) == 1
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert model.training


def test_a_restored_average_goes_on_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = Detr(TINY)
    average, restored = MovingAverage(model, decay=0.99), MovingAverage(Detr(TINY), decay=0.99)
    average.update(fill(model, 3))
    saved = {name: tensor.clone() for name, tensor in average.state_dict().items()}

    restored.load_state_dict(saved, source="run/step-1")
    for each in (average, restored):
        each.update(fill(model, 5))

    assert restored.updates == 2
    expected = average.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored.state_dict().items())


def test_the_average_of_another_network_is_refused() -> None:
    average = MovingAverage(Detr(TINY), decay=0.99)
    tensors = average.state_dict()

    with pytest.raises(CheckpointError, match=r"checkpoint run/7: 'updates' \(\) is missing"):
        average.load_state_dict({BIAS: tensors[BIAS]}, source="run/7")
    with pytest.raises(CheckpointError, match=r"'class_embed.bias' is \(4,\), expected \(92,\)"):
        average.load_state_dict({**tensors, BIAS: torch.zeros(4)}, source="run/7")


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="the decay of the moving average"):
        MovingAverage(Detr(TINY), decay=decay)
