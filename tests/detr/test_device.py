from typing import Any

import pytest
import torch

from detr.device import CpuTransfer, DeviceClock, float32_arithmetic, transfer_for


def settings() -> tuple[str, str, str]:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision


@pytest.mark.parametrize(("tf32", "meant"), [(False, "ieee"), (True, "tf32")])
def test_float32_is_as_asked_for_within_the_context_and_as_it_was_after_it(tf32: bool, meant: str) -> None:
    before = settings()

    with float32_arithmetic(tf32=tf32):
        assert settings() == (meant, meant, meant)

    assert settings() == before


def test_an_error_restores_the_settings_too() -> None:
    before = settings()

    with pytest.raises(RuntimeError, match="of the network"), float32_arithmetic(tf32=True):
        raise RuntimeError("of the network")

    assert settings() == before


def test_on_a_cpu_nothing_is_copied() -> None:
    transfer = transfer_for(torch.device("cpu"))
    pixels = transfer.memory((2, 3), torch.uint8)

    assert isinstance(transfer, CpuTransfer)
    assert (pixels.shape, pixels.dtype) == ((2, 3), torch.uint8)
    assert transfer.upload(pixels)[0] is pixels
    assert transfer.download(pixels).result() is pixels


def test_the_clock_of_a_cpu_adds_times_until_they_are_taken() -> None:
    clock = DeviceClock(torch.device("cpu"))

    began = clock.mark()
    clock.add(1.0, 1.5)
    clock.add(4.0, 4.25)
    ended = clock.mark()

    assert isinstance(began, float)
    assert isinstance(ended, float)
    assert began <= ended
    assert (clock.take(), clock.take()) == (0.75, 0.0)
