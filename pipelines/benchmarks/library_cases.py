"""Cases of `model`, `train` and `decode`: libraries called in a process of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.references import locate
from detr.families import NATIVE, model_family
from pipelines.benchmarks.agreement import compare, read_found
from pipelines.benchmarks.benchmark import Bench, Case, SubjectFailed, found_file
from pipelines.benchmarks.machine import installed
from pipelines.benchmarks.photographs import photograph_files
from pipelines.benchmarks.rounds import Trial, Variant

TRAIN_TOLERANCE = 1e-3  # of the loss, relative to the reference's


def write_model(bench: Bench) -> None:
    """Write the model that is measured to the working folder: the random one, or a copy of the one that was named."""
    if bench.config.model != "random":
        bench.setup("random_model:copy_model", {"model": bench.config.model}, name="model")
        return
    settings = {
        "variant": "detr-resnet-50",
        "shorter": bench.config.shorter,
        "longest": bench.config.longest,
        "seed": 0,
    }
    bench.setup("random_model:write_random_model", settings, name="random model")


def model_cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each shape, batch, precision and part of `model`."""
    config = bench.config
    if config.model != "random" and other_family(config.model):
        yield from family_cases(bench)
        return
    write_model(bench)
    for shape in config.shapes:
        reference = _reference(bench, shape)
        for precision in config.precisions:
            for batch in config.batches:
                for part in config.parts:
                    settings = {
                        "shape": list(shape),
                        "batch": batch,
                        "precision": precision,
                        "device": config.device,
                        "threads": config.threads,
                        "images": max(config.images[0], batch),
                        "seconds": config.seconds,
                    }
                    yield Case(
                        name=f"{part}, {shape[0]}x{shape[1]}, batch {batch}, {precision}, {config.device}",
                        variants=tuple(_model_variants(bench, part, settings)),
                        agreement=partial(_detections_agree, bench.folder, reference),
                        shape=shape if precision != "fp32" else None,
                    )


def other_family(reference: str) -> bool:
    """Return whether a model runs through `transformers`, not in our own network.

    Raises:
        SubjectFailed: there is no such model, or it does not detect boxes.
    """
    try:
        return model_family(locate(reference), source=reference) != NATIVE
    except CheckpointError as error:
        raise SubjectFailed(str(error)) from error


def family_cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each picture size and batch of a model of `transformers`: ours, its pipeline, its network."""
    config = bench.config
    if config.precisions != ("fp32",):
        raise SubjectFailed(f"{config.model} is measured in fp32 only, as models of transformers are not run in others")
    version = installed("transformers") or ""
    bench.reference = "the pipeline of `transformers` in fp32, boxes not cut to whole pixels"
    for shape in config.shapes:
        for batch in config.batches:
            settings = {
                "model": str(locate(config.model)),
                "shape": list(shape),
                "batch": batch,
                "device": config.device,
                "threads": config.threads,
                "images": max(config.images[0], batch),
                "seconds": config.seconds,
            }
            reference = f"reference_{shape[0]}x{shape[1]}.npz"
            alone = {**settings, "batch": 1, "seconds": 0.0, "found": reference, "device": "cpu"}
            bench.setup("peers.transformers_family:whole", alone, name="reference")
            subject = "peers.transformers_family"
            yield Case(
                name=f"{config.model}, pictures of {shape[0]}x{shape[1]}, batch {batch}, fp32, {config.device}",
                variants=(
                    Variant("ours", "family_subjects:detect", settings),
                    Variant("transformers, pipeline", f"{subject}:whole", settings, version),
                    Variant("transformers, network alone", f"{subject}:network", settings, version),
                ),
                agreement=partial(_detections_agree, bench.folder, bench.folder / reference),
            )


def train_cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each shape, batch and precision of `train`."""
    config = bench.config
    write_model(bench)
    bench.reference = "the loss of the last decoder layer that `transformers` computes before training, without dropout"
    for shape in config.shapes:
        for precision in config.precisions:
            for batch in config.batches:
                settings = {
                    "shape": list(shape),
                    "batch": batch,
                    "precision": precision,
                    "device": config.device,
                    "threads": config.threads,
                    "seconds": config.seconds,
                }
                variants = bench.with_before(Variant("ours", "train_subjects:step", settings))
                if bench.has("transformers"):
                    version = installed("transformers") or ""
                    variants.append(Variant("transformers", "peers.transformers_train:step", settings, version))
                losses: dict[str, float] = {}
                yield Case(
                    name=f"training step, {shape[0]}x{shape[1]}, batch {batch}, {precision}, {config.device}",
                    variants=tuple(variants),
                    agreement=partial(_loss_agrees, losses),
                    after=partial(_keep_loss, losses),
                )


def decode_cases(bench: Bench) -> Iterator[Case]:
    """Yield the case of `decode`."""
    config = bench.config
    files = photograph_files(bench, config.images[0])
    settings = {
        "files": [str(file) for file in files],
        "shorter": config.shorter,
        "longest": config.longest,
        "seconds": config.seconds,
    }
    variants = bench.with_before(Variant("ours", "decode_subjects:ours", settings))
    variants.append(Variant("Pillow", "decode_subjects:pillow", settings, installed("pillow") or ""))
    if bench.has("transformers"):
        write_model(bench)
        version = installed("transformers") or ""
        variants.append(
            Variant(
                "transformers, torchvision", "peers.transformers_decode:torchvision_backend", settings, version,
                note="its default, behind Pillow's decoder",
            )
        )  # fmt: skip
        variants.append(Variant("transformers, Pillow", "peers.transformers_decode:pillow_backend", settings, version))
    bench.reference = "Pillow's pixels, in grey levels of 0..255"
    yield Case(
        name=f"decode and resize {len(files)} photographs to {config.shorter} px, one thread",
        variants=tuple(variants),
        agreement=lambda variant, _: _pixels_agree(
            bench.folder / found_file(variant.name), bench.folder / found_file("Pillow")
        ),
    )


def _model_variants(bench: Bench, part: str, settings: Mapping[str, Any]) -> Iterator[Variant]:
    version = installed("transformers") or ""
    yield from bench.with_before(Variant("ours", f"model_subjects:{part}", settings))
    compiled = {**settings, "compile": True}
    if part == "detect":
        if bench.has("transformers"):
            yield Variant("transformers", "peers.transformers_model:detect", settings, version)
        return
    if bench.config.compiled:
        yield Variant("ours, compiled", "model_subjects:forward", compiled)
    if bench.has("transformers"):
        subject = "peers.transformers_model:forward"
        yield Variant("transformers", subject, settings, version, note="as its documentation shows")
        tuned = {**settings, "tuned": True}
        yield Variant("transformers, tuned", subject, tuned, version, note="channels last, inference mode")
        if bench.config.compiled:
            yield Variant("transformers, compiled", subject, compiled, version)
    if bench.config.device != "cpu":
        return
    if bench.has("openvino"):
        yield Variant("OpenVINO", "peers.openvino_model:forward", settings, installed("openvino") or "")
    if bench.has("onnxruntime") and settings["precision"] == "fp32":
        yield Variant("ONNX Runtime", "peers.onnxruntime_model:forward", settings, installed("onnxruntime") or "")


def _reference(bench: Bench, shape: tuple[int, int]) -> Path:
    """Detect with the judge in fp32, one image at a time, on the CPU; return the file of its detections."""
    file = f"reference_{shape[0]}x{shape[1]}.npz"
    judge = "transformers" if bench.has("transformers") else "ours"
    bench.reference = f"{judge} in fp32 on the CPU, one image at a time"
    subject = "peers.transformers_model:forward" if judge == "transformers" else "model_subjects:forward"
    settings = {
        "shape": list(shape),
        "batch": 1,
        "precision": "fp32",
        "device": "cpu",
        "threads": bench.config.threads,
        "images": max(bench.config.images[0], *bench.config.batches),
        "seconds": 0.0,
        "found": file,
    }
    bench.setup(subject, settings, name="reference")
    return bench.folder / file


def _detections_agree(folder: Path, reference: Path, variant: Variant, _: Sequence[Trial]) -> Mapping[str, Any] | None:
    file = folder / found_file(variant.name)
    if not file.exists():
        return None
    found = compare(read_found(file), read_found(reference))
    file.unlink()  # the next case writes one of the same name
    values = asdict(found)
    return {
        "matched": values["matched"],
        "back": values["matched_back"],
        "max px": values["max_px"],
        "AP": values["ap"],
        "boxes": values["boxes"],
    }


def _pixels_agree(file: Path, reference: Path) -> Mapping[str, Any] | None:
    if not (file.exists() and reference.exists()):
        return None
    largest, total, off, count = 0, 0.0, 0, 0
    with np.load(file) as mine, np.load(reference) as theirs:
        if any(mine[name].shape != theirs[name].shape for name in theirs.files):
            return {"sizes": "differ"}
        for name in theirs.files:
            difference = np.abs(mine[name].astype(np.int16) - theirs[name].astype(np.int16))
            largest = max(largest, int(difference.max()))
            total += float(difference.sum())
            off += int((difference > 1).sum())
            count += difference.size
    return {"max": largest, "mean": total / count, "share above 1": off / count}


def _loss(trial: Trial) -> float:
    assert trial.returned is not None
    return float(trial.returned["loss"])


def _keep_loss(losses: dict[str, float], variant: Variant, trial: Trial) -> None:
    losses[variant.name] = _loss(trial)


def _loss_agrees(losses: Mapping[str, float], variant: Variant, trials: Sequence[Trial]) -> Mapping[str, Any] | None:
    mine = _loss(trials[0])
    reference = losses.get("transformers", losses.get("ours"))
    if reference is None:
        return None
    name = "transformers" if "transformers" in losses else "ours"
    if variant.name == name:
        return {"loss": mine}
    return {"loss": mine, f"of {name}'s": mine / reference}
