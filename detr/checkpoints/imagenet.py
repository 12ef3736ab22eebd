"""Initial weights of the residual network, from a classifier trained on ImageNet."""

import os
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from detr.checkpoints.layouts import CheckpointError, summary, wrong_tensors
from detr.checkpoints.tensor_files import read_original
from detr.model import Detr

WEIGHTS = "IMAGENET1K_V1"
"""torchvision's weights by name: those that the paper started from."""

_CLASSIFIER = ("fc.weight", "fc.bias")


def load_backbone(model: Detr, reference: str | os.PathLike[str]) -> None:
    """Fill the residual network with the weights of torchvision's classifier of the same shape, norms included.

    The classifier's last layer is left out; everything else must fit. Frozen and trainable norms take the same files.

    Args:
        model: changed in place.
        reference: a file with torchvision's state dict (`.pth`, opened for tensors only, or `.safetensors`), or
            torchvision's name, such as "resnet50", which is downloaded once.

    Raises:
        CheckpointError: there is no such file or name, it cannot be read or downloaded, or it is of another network.
    """
    source = os.fspath(reference)
    path = Path(source).expanduser()
    found = _read(path, source) if path.is_file() else _download(source)
    body = model.get_submodule("backbone.0.body").state_dict()
    # a trainable norm counts its batches; the classifier's counters are not needed
    wanted = {name: tensor for name, tensor in body.items() if not _is_counter(name)}
    given = {name: tensor for name, tensor in found.items() if name not in _CLASSIFIER and not _is_counter(name)}
    wrong = wrong_tensors(given, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    if wrong:
        raise CheckpointError(
            f"backbone {source}: {summary(wrong)}. It is not torchvision's state dict of {model.config.backbone.name}."
        )
    if not all(tensor.isfinite().all() for tensor in given.values()):
        raise CheckpointError(f"backbone {source}: it contains NaN or infinite values. Use another file.")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])


def _read(path: Path, source: str) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        tensors, _ = read_original(path, source=source)
        return tensors
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"backbone {source}: it is damaged or not a safetensors file ({error}).") from error


def _download(name: str) -> Mapping[str, Tensor]:
    known = [known for known in torchvision.models.list_models(torchvision.models) if known.startswith("resnet")]
    if name not in known:
        raise CheckpointError(
            f"backbone {name}: this file does not exist, and torchvision has no residual network of that name "
            f"({', '.join(known)})."
        )
    try:
        weights = torchvision.models.get_model_weights(name)[WEIGHTS]
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # server unreachable, disk full, wrong hash
        raise CheckpointError(
            f"backbone {name}: torchvision's weights cannot be downloaded ({error}). Download the file on a machine "
            "with network access, and give its path."
        ) from error


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"
