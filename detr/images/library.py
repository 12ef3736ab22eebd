"""Load torchvision's compiled image decoders without its Python package, which takes a second and 160 MB."""

from importlib.util import find_spec
from pathlib import Path

import torch

# torchvision 0.29 renamed the file
_FILES = ("image_stable.so", "image.so", "image_stable.pyd", "image.pyd")


def load_image_library() -> None:
    """Register the operators `torch.ops.image.*`; do nothing if they are already registered.

    Raises:
        ImportError: torchvision is not installed, has no decoders, or was built for another torch.
    """
    if hasattr(torch.ops.image, "decode_jpeg"):
        return
    path = find_image_library()
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"torchvision's image decoders {path} cannot be loaded with torch {torch.__version__}: {error}. "
            "Install matching versions of torch and torchvision."
        ) from error


def find_image_library() -> Path:
    """Return the file of torchvision's decoders, without importing torchvision.

    Raises:
        ImportError: torchvision is not installed, or has no decoders.
    """
    spec = find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "torchvision is not installed, but JPEG files are decoded with its library. Install torchvision."
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        for name in _FILES:
            if (folder / name).is_file():
                return folder / name
    raise ImportError(
        f"torchvision in {folders[0]} has no image decoders ({_FILES[0]}). Install a release of "
        "torchvision that was built with JPEG support."
    )
