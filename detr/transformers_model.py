"""Load detectors of Hugging Face `transformers` from a model directory. The only module that imports that library."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from detr.checkpoints.model_directory import (
    CONFIG_FILE,
    INDEX_ENDING,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    CheckpointError,
    brief,
    read_json,
    shard_names,
    weights_file,
)
from detr.classes import Category
from detr.families import FAMILIES, HALVING, ONE_SIZE, family_categories
from detr.images.results import TooExtreme

INSTALL = "pip install 'ray-detr[transformers]'"
# Settings that describe the origin of a configuration, and do not affect detections.
_NOT_DECIDING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "auto_map")
_TRIED = (480, 640)  # height and width of a picture that every processor accepts
_STRIDE = 32  # stride of the coarsest feature map of the networks of `HALVING`
_ALL_SCORES = -1.0  # a threshold that every score passes: class thresholds are applied afterwards


class TransformersModel:
    """A detector of `transformers` with its own image processor: on the CPU, float32, in evaluation mode."""

    def __init__(self, network: Any, processor: Any, *, family: str, categories: Sequence[Category],
                 identity: str, name: str) -> None:  # fmt: skip
        """Combine a network with its processor.

        Args:
            network: an instance of a class `...ForObjectDetection`.
            processor: the image processor that was saved with it.
            family: key of `detr.families.FAMILIES`.
            categories: the classes by index.
            identity: sha256 in hex of everything that determines its detections.
            name: name of the model in error messages.
        """
        self.network, self._processor = network, processor
        self.family, self.categories, self.identity, self.name = family, tuple(categories), identity, name
        tried = self._process(_without_memory(*_TRIED))
        self.gives_floats = tried["pixel_values"].is_floating_point()
        """Whether the processor converts grey levels to floating-point numbers."""
        self.gives_mask = "pixel_mask" in tried
        """Whether the processor returns a mask of the pixels that are not padding, and the network accepts it."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that the network sees of a picture of `height` x `width` pixels.

        Computed by the processor on an image without memory, in about a millisecond.

        Raises:
            TooExtreme: a side would become 0 pixels.
        """
        pixels = self._process(_without_memory(height, width))["pixel_values"]
        return int(pixels.shape[2]), int(pixels.shape[3])

    def process(self, image: Tensor) -> Tensor:
        """Apply the model's own processor to an upright uint8 `(3, H, W)` RGB image, without padding.

        The result is float32 `(3, h, w)`, resized and normalised.

        Raises:
            TooExtreme: a side would become 0 pixels.
        """
        found = self._process(image)
        pixels, mask = found["pixel_values"][0], found.get("pixel_mask")
        if mask is None:
            return pixels
        height, width = int(mask[0, :, 0].sum()), int(mask[0, 0].sum())
        return pixels[:, :height, :width]

    def postprocess(self, logits: Tensor, boxes_cxcywh: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return `scores`, `labels` (class indices) and `boxes` (xyxy in pixels) of each image, including low scores.

        Args:
            logits: `(B, Q, K)` of the network.
            boxes_cxcywh: `(B, Q, 4)` of the network, relative to the picture.
            sizes: `(B, 2)`, upright (height, width) in pixels.
        """
        return self._processor.post_process_object_detection(
            _Output(logits, boxes_cxcywh), threshold=_ALL_SCORES, target_sizes=sizes
        )

    def _process(self, image: Tensor) -> Any:
        try:
            found = self._processor(images=[image], return_tensors="pt", input_data_format="channels_first")
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            if isinstance(error, RuntimeError) and image.device.type != "meta":
                self.shape(*image.shape[1:])  # raises if the size is the reason
                raise  # such as out of memory
            height, width = image.shape[1:]
            raise TooExtreme(
                f"{width} x {height} pixels (width x height) cannot be resized by the image processor of {self.name}: "
                f"{brief(error)}"
            ) from error
        if 0 in found["pixel_values"].shape:
            height, width = image.shape[1:]
            raise TooExtreme(
                f"{width} x {height} pixels (width x height) are too narrow for the image processor of {self.name}: a "
                "side would be 0; cut the image into pieces"
            )
        return found


def _without_memory(height: int, width: int) -> Tensor:
    """Return an image of a size without memory for pixels, for computations that depend on the size only."""
    return torch.empty((3, height, width), dtype=torch.uint8, device="meta")


@dataclass(frozen=True, slots=True)
class _Output:
    """The fields of a network's output that image processors read."""

    logits: Tensor
    pred_boxes: Tensor


def load_transformers_model(directory: Path, family: str, *, source: str) -> TransformersModel:
    """Load a detector with its image processor. No code in the directory is run, and no pickle is read.

    Args:
        directory: directory with config.json, preprocessor_config.json and weights in safetensors.
        family: key of `detr.families.FAMILIES`.
        source: name of the model in error messages.

    Raises:
        CheckpointError: a library is missing, the weights are not in safetensors, or they are not those of the model.
    """
    weights = weights_file(directory, source=source)
    files = weight_paths(weights, source=source)
    if not any((directory / name).exists() for name in (PREPROCESSOR_FILE, PROCESSOR_FILE)):
        raise CheckpointError(
            f"checkpoint {source}: it has no {PREPROCESSOR_FILE}, so it is unknown how images are resized."
        )
    config = read_json(directory / CONFIG_FILE, source=source)
    names = _class_names(config, source)
    _require_libraries(config, family, source)
    identity = _identity(directory, config, files, source)  # first: it detects damaged files
    network, settings, processor = _load(directory, family, source)
    if names is None:
        names = {int(index): str(name) for index, name in settings.id2label.items()}
    model = TransformersModel(
        network,
        processor,
        family=family,
        categories=family_categories(config, names, source=source),
        identity=identity,
        name=source,
    )
    _check_sizes(model, processor, source)
    return model


def _class_names(config: dict[str, Any], source: str) -> dict[int, str] | None:
    """Return the names in `id2label` of config.json by class index; None if it has none.

    Raises:
        CheckpointError: it is not a mapping from indices to strings.
    """
    labels = config.get("id2label")
    if labels is None:
        return None
    wrong = f"checkpoint {source}: config.json: id2label must map class indices to names, such as '0' to 'cat'"
    if not isinstance(labels, dict) or not labels:
        raise CheckpointError(f"{wrong}; it is {labels!r}.")
    for index, name in labels.items():
        if not index.isdecimal() or not isinstance(name, str | int):
            raise CheckpointError(f"{wrong}; it has {index!r}: {name!r}.")
    return {int(index): str(name) for index, name in labels.items()}


def _check_sizes(model: TransformersModel, processor: Any, source: str) -> None:
    """Refuse image processors whose sizes the network does not accept, which would stop a run at such a picture."""
    if not getattr(processor, "do_resize", True):
        raise CheckpointError(
            f"checkpoint {source}: its image processor does not resize (do_resize is false), and the network does not "
            "accept pictures of every size. Set do_resize and size in preprocessor_config.json."
        )
    if not model.gives_floats:
        raise CheckpointError(
            f"checkpoint {source}: its image processor returns integers, but the network needs floating-point pixels. "
            "Set do_rescale in preprocessor_config.json."
        )
    shapes = {model.shape(*size) for size in ((480, 640), (640, 480), (100, 333))}
    if model.family in ONE_SIZE and len(shapes) > 1:
        raise CheckpointError(
            f"checkpoint {source}: its image processor gives pictures different sizes, but a {FAMILIES[model.family]} "
            "network takes one fixed size only. Set size to a height and a width in preprocessor_config.json."
        )
    (height, width), *_ = shapes
    if model.family in ONE_SIZE and (model.family not in HALVING or height % _STRIDE or width % _STRIDE):
        _try_size(model, height, width, source)


@torch.no_grad()
def _try_size(model: TransformersModel, height: int, width: int, source: str) -> None:
    """Run the network once on a picture of a size, because the accepted sizes are not declared."""
    try:
        model.network(pixel_values=torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError) as error:
        if "alloc" in str(error):  # PyTorch's CPU allocator raises a bare RuntimeError
            raise
        raise CheckpointError(
            f"checkpoint {source}: its image processor gives pictures of {height} x {width} pixels (height x width), "
            f"which its network does not take ({brief(error)}). Set size in preprocessor_config.json to the size that "
            "was used in training."
        ) from error


def weight_paths(weights: Path, *, source: str) -> list[Path]:
    """Return the safetensors files with the weights.

    Raises:
        CheckpointError: they are in pickles, which are refused.
    """
    paths = [weights]
    if weights.name.endswith(INDEX_ENDING):
        paths = [weights.parent / name for name in shard_names(weights, source=source)]
    if any(path.suffix != ".safetensors" for path in paths):
        raise CheckpointError(
            f"checkpoint {source}: its weights are in {weights.name}. Models that run through transformers are only "
            "read from safetensors; save it again with save_pretrained."
        )
    return paths


def _require_libraries(config: dict[str, Any], family: str, source: str) -> None:
    backbone = config.get("backbone_config")
    needs_timm = (isinstance(backbone, dict) and backbone.get("model_type") == "timm_backbone") or bool(
        config.get("use_timm_backbone")
    )
    for library in ("transformers", *(["timm"] if needs_timm else [])):
        if importlib.util.find_spec(library) is None:
            raise CheckpointError(
                f"model {source}: {FAMILIES[family]} models need {library}, which is not installed. "
                f"Install it with: {INSTALL}"
            )


def _load(directory: Path, family: str, source: str) -> tuple[Any, Any, Any]:
    """Return the network, its configuration in `transformers`, and its image processor."""
    with _quiet():
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

        places: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            config = AutoConfig.from_pretrained(directory, **places)
            backbone = getattr(config, "backbone_config", None)
            if backbone is not None and getattr(backbone, "use_pretrained_backbone", False):
                backbone.use_pretrained_backbone = False  # all weights are in the directory
            network, report = AutoModelForObjectDetection.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **places,
            )
            processor = AutoImageProcessor.from_pretrained(directory, **places)
        except CheckpointError:
            raise
        except Exception as error:  # any error of that library for a damaged directory
            raise CheckpointError(f"checkpoint {source}: transformers cannot load it ({brief(error)}).") from error
    unlike = sorted(report["mismatched_keys"])
    if unlike:
        name, *shapes = unlike[0]
        found, expected = (" x ".join(map(str, shape)) for shape in shapes)
        hint = " Does id2label name as many classes as the model was trained with?" if "class" in name else ""
        raise CheckpointError(
            f"checkpoint {source}: the weight {name!r} has shape {found}, but config.json requires {expected}.{hint}"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"checkpoint {source}: {missing[0]!r}{f' and {len(missing) - 1} more weights' if len(missing) > 1 else ''} "
            f"{'is' if len(missing) == 1 else 'are'} missing. It is not a {FAMILIES[family]} of this configuration."
        )
    if not callable(getattr(processor, "post_process_object_detection", None)):
        raise CheckpointError(
            f"checkpoint {source}: its image processor {type(processor).__name__} does not turn outputs into boxes."
        )
    return network.eval(), config, processor


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's progress bars and advice while a model loads."""
    from transformers.utils import logging as messages

    before, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(before)
        if bars:
            messages.enable_progress_bar()


def _identity(directory: Path, config: dict[str, Any], weights: Sequence[Path], source: str) -> str:
    """Return the sha256 of weights, configuration and image processor: everything that determines detections."""
    hashed = hashlib.sha256()
    for part in (config, *_processor_settings(directory, source)):
        hashed.update(json.dumps(_deciding(part), sort_keys=True).encode() + b"\n")
    for name, tensor in _tensors(weights, source):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _deciding(part: Any) -> Any:
    """Return settings without those that only describe their origin, at every depth."""
    if isinstance(part, dict):
        return {name: _deciding(value) for name, value in part.items() if name not in _NOT_DECIDING}
    return part


def _processor_settings(directory: Path, source: str) -> list[dict[str, Any]]:
    paths = [directory / name for name in (PROCESSOR_FILE, PREPROCESSOR_FILE)]
    return [read_json(path, source=source) for path in paths if path.exists()]


def _tensors(paths: Sequence[Path], source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of all files in order of their names, with one in memory at a time."""
    try:
        with ExitStack() as opened:
            files = [opened.enter_context(safetensors.safe_open(path, framework="pt")) for path in paths]
            holders = [(name, file) for file in files for name in file.keys()]  # noqa: SIM118 - not a mapping
            for name, file in sorted(holders, key=lambda one: one[0]):
                yield name, file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint {source}: its weights cannot be read ({brief(error)}).") from error
