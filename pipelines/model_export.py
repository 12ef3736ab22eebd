"""Export a DETR to a file for other runtimes, and compare the file with the network."""

from __future__ import annotations

import importlib.metadata
import io
import secrets
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pipelines.errors import RayDetrError, UsageError
from pipelines.models import load_model
from pipelines.remote_errors import first_line
from pipelines.store import StoreOptions

if TYPE_CHECKING:
    from torch import Tensor

    from detr.model import Detr, PaddingMode

ModelFormat = Literal["onnx", "pt2"]
SUFFIXES: Final[dict[ModelFormat, str]] = {"onnx": ".onnx", "pt2": ".pt2"}

MOST_DIFFERENCE: Final = 1e-5
"""Largest allowed difference of an exported file from the network's scores and boxes (both 0..1)."""

CHECKED_SIZES: Final = (((96, 128),), ((160, 96), (128, 129), (65, 70)))
"""(height, width) of the images of each compared batch; neither shape is the traced one."""


@dataclass(frozen=True, slots=True)
class ModelExport:
    """An exported file.

    Attributes:
        model: `name@sha256[:12]` of the model.
        out: path of the file.
        format: "onnx" or "pt2".
        padding: padding mode inside the network.
        bytes: size of the file.
        difference: largest difference from the network's own scores and boxes (both 0..1), over `CHECKED_SIZES`.
    """

    model: str
    out: str
    format: ModelFormat
    padding: PaddingMode
    bytes: int
    difference: float


def export_model(
    reference: str, out: Path, *, form: ModelFormat, padding: PaddingMode, options: StoreOptions
) -> ModelExport:
    """Write a DETR as an ONNX file, or as a program of `torch.export`; see `detr.exported`.

    The file gets its name after it was run and its results were compared.

    Args:
        reference: a value of `--model`, of a DETR or a Table Transformer.
        out: path of the file; it must not exist.
        form: the format.
        padding: padding mode inside the network; see `detr.model.Detr.forward`.
        options: access to a model in a store.

    Raises:
        UsageError: `out` exists or has another suffix, there is no such model, or the packages are not installed.
        RayDetrError: the file cannot be written, or differs from the network.
    """
    if out.suffix != SUFFIXES[form]:
        raise UsageError(f"{out} does not end in {SUFFIXES[form]}.")
    unfinished = out.with_name(f".ray-detr-unfinished-{secrets.token_hex(8)}{out.suffix}")
    try:
        exists = out.exists()
    except OSError as error:
        raise _cannot_write(out, error) from error
    if exists:
        raise UsageError(f"{out} exists already. Remove it, or name another file.")
    if form == "onnx":
        _require_onnx()
    model, info = load_model(reference, options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        difference = _write_and_compare(model, unfinished, form, padding)
        if not difference <= MOST_DIFFERENCE:
            raise RayDetrError(
                f"the {form} file of {info.id} differs from the network by {difference:.1e} in scores or boxes, more "
                f"than {MOST_DIFFERENCE:.0e}. Nothing was written; try other versions of torch, onnx and onnxruntime."
            )
        unfinished.rename(out)
        size = out.stat().st_size
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        with suppress(OSError):  # where it could not be written, it cannot be removed either
            unfinished.unlink(missing_ok=True)
    return ModelExport(info.id, str(out), form, padding, size, difference)


def _write_and_compare(model: Detr, path: Path, form: ModelFormat, padding: PaddingMode) -> float:
    """Write a file and return the largest difference of its scores and boxes from the network's; NaN if any is NaN."""
    import torch

    from detr import exported

    if form == "onnx":
        exported.write_onnx(model, path, padding=padding)
        run = _onnx_runner(path)
    else:
        program = io.BytesIO()  # torch's own writer of files ends in a RuntimeError on a full disk
        torch.export.save(exported.export_program(model, padding=padding), program)
        path.write_bytes(program.getbuffer())
        with warnings.catch_warnings():  # torch 2.11
            warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
            run = torch.export.load(path).module()
    differences = []
    for sizes in CHECKED_SIZES:
        pixels, mask = exported.example_inputs(sizes)
        with torch.no_grad():
            logits, boxes = _outputs(run, pixels, mask)
            own = model(pixels, mask, padding=padding)
        differences.append((logits.softmax(-1) - own.logits.softmax(-1)).abs().max())
        differences.append((boxes - own.boxes_cxcywh).abs().max())
    return float(torch.stack(differences).max())  # Python's max would drop a NaN


def _outputs(run: Callable[..., Any], pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and boxes of an exported network.

    Raises:
        RayDetrError: the network was exported for images of some sizes only.
    """
    try:
        logits, boxes = run(pixels, mask)
    except AssertionError as error:  # a guard: torch 2.11 makes one of the parity of the sides, at each max-pooling
        raise RayDetrError(
            f"torch {importlib.metadata.version('torch')} exports this network for images of some sizes only "
            f"({first_line(error)}). Nothing was written; torch 2.14 works, and so does --to onnx."
        ) from error
    return logits, boxes


def _cannot_write(out: Path, error: OSError) -> RayDetrError:
    return RayDetrError(f"cannot write {out}: {error.strerror or error}.")


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"writing ONNX needs {error.name}, which is not installed. Install it with: pip install 'ray-detr[onnx]'"
        ) from error


def _onnx_runner(path: Path) -> Callable[[Tensor, Tensor], list[Tensor]]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: Tensor, mask: Tensor) -> list[Tensor]:
        found = session.run(["logits", "boxes"], {"pixels": pixels.numpy(), "mask": mask.numpy()})
        return [torch.from_numpy(value) for value in found]

    return run
