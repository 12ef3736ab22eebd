"""One damaged file of a model directory: it is loaded whole, or refused in a sentence that names it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from random import Random

import safetensors.torch
import torch

from detr.checkpoints.checkpoint import save
from detr.checkpoints.model_directory import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHT_FILES
from detr.config import BackboneConfig, DetrConfig
from detr.model import Detr
from pipelines.errors import RayDetrError
from pipelines.models import load_model
from pipelines.store import StoreOptions
from tests.faults.fuzzing.mutations import mutate, random_of
from tests.faults.fuzzing.structures import damage_json

FILES = (CONFIG_FILE, PREPROCESSOR_FILE, *WEIGHT_FILES)


class ModelSuite:
    """A case is one of the files of a small model, damaged; the weights as safetensors or as a pickle of tensors."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._folder = Path(tempfile.mkdtemp(prefix="fuzzed-model-"))
        self._files = _small_model(self._folder / "whole")

    def data(self, number: int) -> bytes:
        """Return the damaged file."""
        return self._case(number)[1]

    def outcome(self, number: int) -> str:
        """Return what became of loading the model."""
        name, data = self._case(number)
        folder = self._folder / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for other in (CONFIG_FILE, PREPROCESSOR_FILE, *([] if name in WEIGHT_FILES else WEIGHT_FILES[:1])):
            (folder / other).write_bytes(self._files[other])
        (folder / name).write_bytes(data)
        try:
            network, info = load_model(str(folder), StoreOptions())
        except RayDetrError as error:
            sentence = str(error)
            sentence.encode()
            if str(folder) not in sentence or len(sentence) > 2000:
                raise
            return f"{name}: refused"
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
        assert info.id.startswith("damaged@")
        return f"{name}: loaded"

    def _case(self, number: int) -> tuple[str, bytes]:
        random = random_of(self._seed, number)
        name = random.choice(FILES)
        data = self._files[name]
        if number < 0:
            return name, data
        if name.endswith(".json") and random.random() < 0.7:
            return name, damage_json(random, data)
        if name.endswith(".safetensors") and random.random() < 0.6:
            return name, _damage_header(random, data)
        return name, mutate(random, data, list(self._files.values()))


SUITE = ModelSuite


def _small_model(folder: Path) -> dict[str, bytes]:
    """Return the files of a network of some kilobytes, its weights also as a pickle of tensors."""
    backbone = BackboneConfig("resnet", "basic", 4, (4, 4, 4, 4), (1, 1, 1, 1))
    config = DetrConfig(
        backbone=backbone, hidden_dim=16, heads=2, feedforward_dim=16, encoder_layers=1, decoder_layers=1, queries=5
    )
    torch.manual_seed(1)
    network = Detr(config).eval()
    save(network, folder)
    files = {name: (folder / name).read_bytes() for name in FILES[:3]}
    pickled = folder / WEIGHT_FILES[1]
    torch.save(safetensors.torch.load(files[WEIGHT_FILES[0]]), pickled)
    files[WEIGHT_FILES[1]] = pickled.read_bytes()
    return files


def _damage_header(random: Random, data: bytes) -> bytes:
    """Return a safetensors file whose header is JSON and says something else."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    tensors = json.loads(header)
    # few names, so that offsets and shapes are met as often as names
    changed = damage_json(random, json.dumps(dict(random.sample(sorted(tensors.items()), 3))).encode())
    try:
        tensors.update(json.loads(changed))
        changed = json.dumps(tensors).encode()
    except (RecursionError, ValueError, TypeError):
        pass  # it stays as it is: a header of these few
    length = random.choice((len(changed), len(changed), len(changed), len(changed) + 1, 2**40, 2**63))
    return length.to_bytes(8, "little") + changed + data[8 + size :]
