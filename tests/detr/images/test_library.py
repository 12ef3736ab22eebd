"""The compiled decoders of torchvision are found and loaded without its Python package."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from detr.images import library as image_library
from detr.images.library import find_image_library, load_image_library

WITHOUT_THE_PACKAGE = """
import sys, torch
from detr.images.decoding import decode, resize
picture = resize(decode(open(sys.argv[1], "rb").read()), 10, 20)
print(tuple(picture.shape), "torchvision" in sys.modules, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def installed_in(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """Have torchvision be installed in that folder, or nowhere."""
    spec = None
    if folder is not None:
        spec = ModuleSpec("torchvision", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(image_library, "find_spec", lambda _name: spec)


@pytest.mark.parametrize("name", ["image_stable.so", "image.so"])
def test_the_library_is_found_under_its_names_of_old_and_new_releases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    installed_in(monkeypatch, tmp_path)
    (tmp_path / name).touch()

    assert find_image_library() == tmp_path / name


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed_in(monkeypatch, None)

    with pytest.raises(ImportError, match=r"^torchvision is not installed, but JPEG files .* Install torchvision\.$"):
        find_image_library()


def test_a_torchvision_without_decoders_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_in(monkeypatch, tmp_path)

    with pytest.raises(ImportError, match=rf"^torchvision in {tmp_path} has no image decoders \(image_stable\.so\)"):
        find_image_library()


def test_a_library_that_does_not_fit_this_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_in(monkeypatch, tmp_path)
    (tmp_path / "image_stable.so").write_bytes(b"no library")
    monkeypatch.setattr(torch.ops, "image", object())

    with pytest.raises(
        ImportError,
        match=r"image_stable\.so cannot be loaded with torch .*Install matching versions of torch and torchvision\.$",
    ):
        load_image_library()


@pytest.mark.slow  # a process of its own imports torch
def test_images_are_decoded_and_resized_without_torchvisions_python_package(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 6)).save(tmp_path / "picture.jpg")

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path / "picture.jpg")],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "(3, 10, 20) False False False"
