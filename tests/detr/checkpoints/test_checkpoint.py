import argparse
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from detr.checkpoints import checkpoint, references
from detr.checkpoints.checkpoint import CheckpointError, dump, fingerprint, load, load_files, model_files, save
from detr.checkpoints.layouts import to_file
from detr.checkpoints.tensor_files import read_original
from detr.classes import Category
from detr.config import VARIANTS, BackboneConfig, DetrConfig
from detr.model import Detr

TINY = DetrConfig(
    backbone=BackboneConfig("tiny", "basic", 4, (8, 16), (2, 1)),
    hidden_dim=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=8,
    dropout=0.25,
    queries=3,
    categories=(Category(3, "cat"), Category(70, "N/A"), Category(7, "dog")),
    shorter=96,
    longest=160,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a small model directory."""
    save(seeded(TINY), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Detr:
    """Make the official variants small, so that a .pth of one is a few kB, and return the first."""
    backbone = BackboneConfig("small", "bottleneck", 4, (8, 16), (1, 2))
    for name, config in VARIANTS.items():
        dilation = config.backbone.dilation
        monkeypatch.setitem(VARIANTS, name, replace(TINY, backbone=replace(backbone, dilation=dilation)))
    return seeded(VARIANTS["detr-resnet-50"])


def seeded(config: DetrConfig) -> Detr:
    torch.manual_seed(0)
    model = Detr(config).eval()
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return model


def same(model: Detr, other: Detr) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def refusal(ref: str | Path, variant: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(ref, variant=variant)
    message = str(caught.value)
    assert "\n" not in message
    assert str(ref) in message  # which thing
    return message


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Bomb:
    """Unpickling one would run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


# what is saved is loaded


def test_a_saved_model_loads_as_it_was_classes_and_sizes_included(saved: Path) -> None:
    model = load(saved)

    assert same(model, seeded(TINY))
    assert model.config == TINY
    assert not model.training
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    load(saved)

    assert torch.equal(torch.rand(1), expected)


def test_a_loaded_model_does_not_look_at_its_file_again(saved: Path) -> None:
    model = load(saved)

    with (saved / "model.safetensors").open("r+b") as file:
        file.truncate(100)

    assert same(model, seeded(TINY))


def test_a_trainable_norm_loads_as_the_frozen_one_that_it_is_in_evaluation(tmp_path: Path) -> None:
    trained = seeded(replace(TINY, backbone=replace(TINY.backbone, norm="batch")))

    save(trained, tmp_path / "model")

    loaded = load(tmp_path / "model")
    assert loaded.config == TINY
    pixels = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(trained(pixels, None).logits, loaded(pixels, None).logits, rtol=0, atol=1e-5)
    assert fingerprint(trained) == fingerprint(loaded)


def test_a_dumped_model_has_the_files_that_save_writes_and_is_read_back(tmp_path: Path) -> None:
    model = seeded(TINY)
    save(model, tmp_path / "model")

    files = dump(model)

    assert files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert same(load_files(files, source="s3://runs/a"), model)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("model.safetensors", b"12345678{", "model.safetensors cannot be read, it is damaged or incomplete"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[]", "config.json is not a JSON object"),
        ("config.json", b'{"model_type": "bert"}', "bert"),
        ("preprocessor_config.json", b"\xff", "preprocessor_config.json cannot be read"),
    ],
)
def test_damaged_files_of_a_dumped_model_are_named(name: str, data: bytes, message: str) -> None:
    files = {**dump(seeded(TINY)), name: data}

    with pytest.raises(CheckpointError, match=f"checkpoint s3://runs/a: .*{message}"):
        load_files(files, source="s3://runs/a")


def test_a_model_in_half_precision_is_saved_as_float32(tmp_path: Path) -> None:
    save(seeded(TINY).bfloat16(), tmp_path / "model")

    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}


def test_saving_again_replaces_the_model_and_keeps_its_card(saved: Path) -> None:
    (saved / "README.md").write_text("the card")
    other = Detr(TINY).eval()

    save(other, saved)

    assert same(load(saved), other)
    assert (saved / "README.md").read_text() == "the card"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]  # nothing temporary is left


def test_a_directory_that_is_not_a_model_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "notes.txt").write_text("notes")

    for target in ("photos", "notes.txt"):
        with pytest.raises(CheckpointError, match=rf"cannot save to .*{target}: it is not empty and is not a model"):
            save(seeded(TINY), tmp_path / target)

    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "photos"]


def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)

    with pytest.raises(
        CheckpointError,
        match=r"cannot save to .*: No space left on device\. The model is written to a temporary directory beside it",
    ):
        save(Detr(TINY), saved)

    monkeypatch.undo()
    assert same(load(saved), seeded(TINY))
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


# the other ways in which weights lie about


def test_an_embedded_model_is_known_by_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.rename(saved.with_name("shapes"))
    monkeypatch.setattr(references, "EMBEDDED", saved.parent)

    assert same(load("shapes"), seeded(TINY))
    assert "or an embedded model (shapes)" in refusal("shape")


def test_bin_files_are_read(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")

    assert same(load(saved), seeded(TINY))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read(saved: Path, ending: str) -> None:
    shard(saved, ending)

    assert same(load(saved), seeded(TINY))


def shard(directory: Path, ending: str) -> str:
    """Cut the weights into two shards and return the name of the second."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    shards = [f"{stem}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    where = {name: shards[index % 2] for index, name in enumerate(tensors)}
    for file in shards:
        content = {name: tensors[name] for name in tensors if where[name] == file}
        (save_file if ending == "safetensors" else torch.save)(content, directory / file)
    (directory / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return shards[1]


def test_a_missing_shard_is_named(saved: Path) -> None:
    (saved / shard(saved, "safetensors")).unlink()

    assert "model-00002-of-00002.safetensors cannot be read" in refusal(saved)


def test_an_index_that_points_elsewhere_is_refused(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved.parent / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"class_embed.bias": "../model-00001-of-00001.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "which is not a valid name of a shard" in refusal(saved)


@pytest.mark.parametrize(
    ("present", "needed"),
    [
        (["README.md", "model.safetensors", "config.json"], ["config.json", "model.safetensors"]),
        (
            ["pytorch_model.bin", "model.safetensors", "preprocessor_config.json", "config.json"],
            ["config.json", "preprocessor_config.json", "model.safetensors"],
        ),
        (["pytorch_model.bin", "config.json"], ["config.json", "pytorch_model.bin"]),
        (
            ["config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "training.safetensors"],
            ["config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"],
        ),
    ],
)
def test_the_files_that_a_model_needs_are_known_from_their_names(present: list[str], needed: list[str]) -> None:
    assert model_files(present, source="m") == tuple(needed)


def test_a_directory_without_configuration_or_weights_is_not_a_model(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert "it has no weights" in refusal(saved)

    (saved / "config.json").unlink()
    assert "it has no config.json" in refusal(saved)


# original .pth files


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("detr-r50-dc5.pth", None),
        ("detr_resnet50_dc5.pth", None),
        ("my.pth", "detr-resnet-50-dc5"),
        ("detr-r50-dc5.pth", "detr-resnet-50-dc5"),
    ],
)
def test_the_variant_of_a_pth_comes_from_its_name_or_from_the_caller(
    official: Detr, tmp_path: Path, name: str, variant: str | None
) -> None:
    torch.save({"model": official.state_dict()}, tmp_path / name)

    model = load(tmp_path / name, variant=variant)

    assert same(model, official)
    assert model.config.backbone.dilation


def test_a_pth_that_nobody_names_is_refused_because_plain_and_dc5_look_alike(official: Detr, tmp_path: Path) -> None:
    torch.save({"model": official.state_dict()}, tmp_path / "best.pth")

    assert "Give variant, one of detr-resnet-50, detr-resnet-50-dc5" in refusal(tmp_path / "best.pth")
    assert "Did you mean 'detr-resnet-50-dc5'?" in refusal(tmp_path / "best.pth", "detr-resnet50-dc5")
    torch.save({"model": official.state_dict()}, tmp_path / "detr-r50.pth")
    assert "its name says detr-resnet-50, but" in refusal(tmp_path / "detr-r50.pth", "detr-resnet-50-dc5")


def test_a_training_checkpoint_with_its_arguments_is_read(official: Detr, tmp_path: Path) -> None:
    content = {
        "model": official.state_dict(),
        "optimizer": torch.optim.AdamW(official.parameters()).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-4, device="cuda", masks=False, resume=None),
    }
    torch.save(content, tmp_path / "detr-r50.pth")

    assert same(load(tmp_path / "detr-r50.pth"), official)


def test_a_bare_state_dict_and_the_format_of_2020_are_read(official: Detr, tmp_path: Path) -> None:
    torch.save(official.state_dict(), tmp_path / "detr-r50.pth")
    assert same(load(tmp_path / "detr-r50.pth"), official)

    torch.save({"model": official.state_dict()}, tmp_path / "detr-r50.pth", _use_new_zipfile_serialization=False)
    assert same(load(tmp_path / "detr-r50.pth"), official)


def test_the_hash_in_a_name_is_checked(official: Detr, tmp_path: Path) -> None:
    torch.save({"model": official.state_dict()}, tmp_path / "x.pth")
    digest = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()[:8]
    right, wrong = tmp_path / f"detr-r50-{digest}.pth", tmp_path / "detr-r50-e632da11.pth"
    right.write_bytes((tmp_path / "x.pth").read_bytes())
    (tmp_path / "x.pth").rename(wrong)

    assert same(load(right), official)
    assert f"its sha256 is {digest}.., but its name says e632da11" in refusal(wrong)


@pytest.mark.parametrize("date", ["20261130", "202611301205", "20261130120559"])
def test_a_date_in_a_name_is_no_hash(date: str, tmp_path: Path) -> None:
    path = tmp_path / f"detr-r50-{date}.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, path)

    assert list(read_original(path, source=path.name)[0]) == ["a"]


@pytest.mark.parametrize("digits", ["20261330", "12345678", "202611301"])
def test_other_digits_in_a_name_are_a_hash(digits: str, tmp_path: Path) -> None:
    path = tmp_path / f"detr-r50-{digits}.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, path)

    with pytest.raises(CheckpointError, match=f"but its name says {digits}"):
        read_original(path, source=path.name)


def test_a_pth_with_other_classes_and_queries_has_labels_named_by_their_numbers(official: Detr, tmp_path: Path) -> None:
    categories = tuple(Category(index, f"LABEL_{index}") for index in range(5))
    tuned = seeded(replace(official.config, categories=categories, queries=7))
    torch.save({"model": tuned.state_dict()}, tmp_path / "detr-r50.pth")

    model = load(tmp_path / "detr-r50.pth")

    assert model.config == tuned.config
    assert same(model, tuned)


def test_a_pth_with_as_many_classes_as_the_variant_has_those(official: Detr, tmp_path: Path) -> None:
    tuned = seeded(replace(official.config, queries=7))
    torch.save({"model": tuned.state_dict()}, tmp_path / "detr-r50.pth")

    assert load(tmp_path / "detr-r50.pth").config.categories == official.config.categories


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("class_embed.weight", torch.zeros(1, 16), "'class_embed.weight' is (1, 16), expected (4, 16)"),
        ("class_embed.weight", torch.zeros(16), "'class_embed.weight' is (16,), expected (4, 16)"),
        ("class_embed.bias", torch.zeros(6), "'class_embed.bias' is (6,), expected (4,)"),
        ("query_embed.weight", torch.zeros(0, 16), "'query_embed.weight' is (0, 16), expected (3, 16)"),
        ("query_embed.weight", torch.zeros(7, 8), "'query_embed.weight' is (7, 8), expected (7, 16)"),
    ],
)
def test_heads_that_cannot_be_are_refused(
    official: Detr, tmp_path: Path, key: str, tensor: Tensor, message: str
) -> None:
    torch.save({"model": {**official.state_dict(), key: tensor}}, tmp_path / "detr-r50.pth")

    assert message in refusal(tmp_path / "detr-r50.pth")


# what is refused


@pytest.mark.parametrize("file", ["detr-r50.pth", "pytorch_model.bin"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    saved: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    (saved / "model.safetensors").unlink()
    path = saved / file
    ref = path if path.suffix == ".pth" else saved
    for write in (
        lambda: torch.save({"model": Bomb()}, path),
        lambda: path.write_bytes(pickle.dumps({"a": Bomb()}, protocol=2)),
    ):
        write()
        assert "contains more than tensors (posix.system)" in refusal(ref)
    assert not (saved.parent / "exploded").exists()


def test_a_namespace_is_allowed_in_the_originals_files_only(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"a": argparse.Namespace()}, saved / "pytorch_model.bin")

    assert "contains more than tensors (argparse.Namespace)" in refusal(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or incomplete"),
        (b"<!DOCTYPE html><title>404</title>", "damaged or incomplete"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"\xff" * 64, "damaged or incomplete"),
    ],
    ids=["empty", "html", "lfs", "ones"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "detr-r50.pth"])
def test_what_holds_no_tensors_is_refused(saved: Path, name: str, content: bytes, message: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(content)

    assert message in refusal(saved / name if name.endswith(".pth") else saved)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {}}, {"model": {"a": 1}}, torch.zeros(2)])
def test_a_pickle_of_something_else_is_refused(official: Detr, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "detr-r50.pth")

    assert re.search("does not contain a state dict|is not a tensor", refusal(tmp_path / "detr-r50.pth"))


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file_is_refused(saved: Path, name: str, kept: float) -> None:
    if name.endswith(".bin"):
        tensors = load_file(saved / "model.safetensors")
        (saved / "model.safetensors").unlink()
        torch.save(tensors, saved / name)
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(kept * len(content))])

    assert "damaged or incomplete" in refusal(saved)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    data=st.data(),
    name=st.sampled_from(["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"]),
)
def test_a_damaged_model_directory_loads_or_is_refused_but_never_crashes(
    saved: Path, data: st.DataObject, name: str
) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    damaged = saved.with_name("damaged")
    damaged.mkdir(exist_ok=True)
    for file, content in files.items():
        (damaged / file).write_bytes(content)
    if name == "pytorch_model.bin":
        torch.save(load_file(damaged / "model.safetensors"), damaged / name)
        (damaged / "model.safetensors").unlink()
    path = damaged / name
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(changed), 4000) - 1))  # headers are at the start
        changed[place] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)

    try:
        load(damaged)
    except CheckpointError as error:
        assert str(damaged) in str(error)  # noqa: PT017  # loading is as good


def test_a_configuration_of_another_model_is_refused_by_the_first_wrong_weights(saved: Path) -> None:
    change_json(saved / "config.json", num_queries=5)

    message = refusal(saved)

    assert "'model.query_position_embeddings.weight' is (3, 16), expected (5, 16)" in message
    assert "It is not a DETR of this configuration (tiny, 1+1 layers, 5 queries, 3 classes)" in message


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", "{"), ("config.json", "[]"), ("preprocessor_config.json", "[" * 10**5)]
)
def test_a_json_file_that_cannot_be_read_is_named(saved: Path, name: str, content: str) -> None:
    (saved / name).write_text(content)

    assert name in refusal(saved)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("/nowhere/model", "there is no such file or directory"),
        ("detr-r50-e632da11.pth", "there is no such file or directory"),
        ("some/detr-r50.pth", "there is no such file or directory"),
        ("a model", "there is no such file or directory"),
        ("s3://models/detr", "only local paths and hub ids can be loaded here"),
        ("", "there is no such file"),
    ],
)
def test_a_reference_to_nothing_is_refused(ref: str, message: str) -> None:
    assert message in refusal(ref)


def test_a_single_weights_file_of_a_directory_is_refused(saved: Path) -> None:
    assert "Give the directory that contains this file and its config.json." in refusal(saved / "model.safetensors")


def test_a_variant_for_a_directory_is_refused(saved: Path) -> None:
    assert "variant applies only to .pth files" in refusal(saved, "detr-resnet-50-dc5")


# fingerprints


def test_a_network_has_the_same_fingerprint_from_whichever_file(official: Detr, tmp_path: Path) -> None:
    torch.save({"model": official.state_dict()}, tmp_path / "detr-r50.pth")
    save(official, tmp_path / "model")
    torch.save(to_file(official, "resnet"), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()

    assert (
        fingerprint(official) == fingerprint(load(tmp_path / "detr-r50.pth")) == fingerprint(load(tmp_path / "model"))
    )
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(official))


def test_everything_that_decides_detections_is_in_the_fingerprint(official: Detr) -> None:
    config, state = official.config, official.state_dict()

    def changed(**changes: object) -> str:
        model = Detr(replace(config, **changes))
        model.load_state_dict(state)
        return fingerprint(model)

    prints = [
        fingerprint(official),
        changed(backbone=replace(config.backbone, dilation=True)),
        changed(heads=4),
        changed(shorter=100),
        changed(categories=(Category(4, "cat"), *config.categories[1:])),
        changed(categories=(Category(3, "cats"), *config.categories[1:])),
    ]
    state["class_embed.bias"] = state["class_embed.bias"] + 1e-6
    prints.append(changed())
    assert len(set(prints)) == len(prints)


def test_what_only_training_knows_is_not_in_the_fingerprint(official: Detr) -> None:
    model = Detr(replace(official.config, dropout=0.0, backbone=replace(official.config.backbone, name="other")))
    model.load_state_dict(official.state_dict())

    assert fingerprint(model) == fingerprint(official)


LOADED = """
import sys
from PIL import Image
from detr.detectors import load_detector
detector = load_detector("scenes")
detector([Image.new("RGB", (300, 200))])
print([name for name in ("torch._dynamo", "sympy", "torchvision") if name in sys.modules])
"""


@pytest.mark.slow  # a process of its own imports torch
def test_a_process_that_loads_a_model_and_detects_does_not_import_pytorchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"  # they would take 3 s of CPU and 150 MB in each actor
