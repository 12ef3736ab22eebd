"""Cases of `model`, `train` and `decode`: libraries called in a process of their own."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detr.checkpoints.identity import identify_directory
from detr.checkpoints.model_directory import CheckpointError
from detr.checkpoints.references import absolute_reference, locate
from detr.families import NATIVE, model_family
from pipelines.benchmarks.agreement import compare_common, read_found
from pipelines.benchmarks.benchmark import Bench, Case, SubjectFailed, found_file
from pipelines.benchmarks.config import GRAPH_PEERS, NATIVE_SIZES
from pipelines.benchmarks.machine import installed
from pipelines.benchmarks.photographs import photograph_files
from pipelines.benchmarks.roofline import is_covered
from pipelines.benchmarks.rounds import Trial, Variant
from pipelines.benchmarks.timing import FREED_MEMORY_NOTE

TRAIN_TOLERANCE = 1e-3  # of the loss, relative to the reference's


def write_model(bench: Bench) -> None:
    """Write the measured model to the working folder: a random one, or a copy of the named one."""
    if bench.config.model != "random":
        bench.setup("random_model:copy_model", {"model": absolute_reference(bench.config.model)}, name="model")
        return
    _write_random(bench, "detr-resnet-50")


def _write_random(bench: Bench, name: str) -> None:
    """Write a random model in the size of a published one to the working folder."""
    if name in NATIVE_SIZES:
        settings = {"variant": name, "shorter": bench.config.shorter, "longest": bench.config.longest, "seed": 0}
        bench.setup("random_model:write_random_model", settings, name=f"random {name}")
        return
    bench.setup("peers.random_family:write_random_family", {"name": name, "seed": 0}, name=f"random {name}")


def model_cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each shape, batch, precision and part of `model`."""
    config = bench.config
    if config.random_sizes:
        _check_pipeline_only(bench)
        yield from random_cases(bench)
        return
    if config.model != "random" and other_family(config.model):
        _check_pipeline_only(bench)
        yield from pipeline_cases(bench, config.model, str(locate(config.model).resolve()))
        return
    write_model(bench)
    has_roofline = _has_roofline(bench)
    if bench.has("pipeline"):
        yield from pipeline_cases(bench, config.model, str(bench.folder / "model"))
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
                        shape=shape if has_roofline and precision != "fp32" else None,
                    )


def _check_pipeline_only(bench: Bench) -> None:
    """Refuse candidates that are not measured with a model of another family, or of `random:NAME`.

    Raises:
        SubjectFailed: an option requests one.
    """
    config = bench.config
    graphs = [peer for peer in config.peers if peer in GRAPH_PEERS]
    option = f"--peers {' '.join(graphs)}" if graphs else "--compile" if config.compiled else None
    if option is not None:
        raise SubjectFailed(f"{option}: {config.model} is compared with `transformers` and --against only")


def _has_roofline(bench: Bench) -> bool:
    """Return whether the measured model, written to the working folder, is a network whose FLOPs are known."""
    if bench.config.primary != "wall":
        return False
    identified = identify_directory(bench.folder / "model")
    return identified is not None and is_covered(identified[0])


def other_family(reference: str) -> bool:
    """Return whether a model runs through `transformers`, not in our own network.

    Raises:
        SubjectFailed: there is no such model, or it does not detect boxes.
    """
    try:
        return model_family(locate(reference), source=reference) != NATIVE
    except CheckpointError as error:
        raise SubjectFailed(str(error)) from error


def random_cases(bench: Bench) -> Iterator[Case]:
    """Yield the cases of random models in the sizes of published ones, each written before it is measured."""
    for name in bench.config.random_sizes:
        shutil.rmtree(bench.folder / "model", ignore_errors=True)
        _write_random(bench, name)
        yield from pipeline_cases(bench, f"random {name}", str(bench.folder / "model"))


def pipeline_cases(bench: Bench, name: str, model: str) -> Iterator[Case]:
    """Yield a case for each picture size and batch: a model in ours, in the pipeline of `transformers`, its network.

    Args:
        bench: the benchmark.
        name: what the report calls the model.
        model: its directory, which both libraries load.
    """
    config = bench.config
    if config.precisions != ("fp32",):
        raise SubjectFailed(
            f"{name} is measured in fp32 only: the pipeline's half precision casts all weights, ours computes heads in "
            "float32, so their detections could not be compared"
        )
    version = installed("transformers") or ""
    bench.reference = "the pipeline of `transformers` in fp32 with single pictures, boxes not cut to whole pixels"
    for shape in config.shapes:
        for batch in config.batches:
            settings = {
                "model": model,
                "shape": list(shape),
                "precision": "fp32",
                "batch": batch,
                "device": config.device,
                "threads": config.threads,
                "images": max(config.images[0], batch),
                "seconds": config.seconds,
            }
            subject = "peers.transformers_family"
            pipeline = Variant("transformers, pipeline", f"{subject}:whole", settings, version)
            reference = bench.folder / f"reference_{shape[0]}x{shape[1]}.npz"
            reference.unlink(missing_ok=True)
            if batch > 1 or config.device != "cpu":
                alone = {**settings, "found": reference.name, "device": "cpu"}
                bench.setup(f"{subject}:reference", alone, name="reference")
            yield Case(
                name=f"{name}, pictures of {shape[0]}x{shape[1]}, batch {batch}, fp32, {config.device}",
                variants=(
                    *bench.with_before(Variant("ours", "family_subjects:detect", settings, note=_note(bench))),
                    pipeline,
                    Variant("transformers, network alone", f"{subject}:network", settings, version),
                ),
                agreement=partial(_detections_agree, bench.folder, reference),
                after=partial(_keep_reference, bench.folder, reference, pipeline),
            )


def _keep_reference(folder: Path, reference: Path, source: Variant, variant: Variant, _: Trial) -> None:
    """Use the detections of `source` as the reference, unless there is one already."""
    if variant == source and not reference.exists():
        shutil.copyfile(folder / found_file(source.name), reference)


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
    yield from bench.with_before(Variant("ours", f"model_subjects:{part}", settings, note=_note(bench)))
    compiled = {**settings, "compile": True}
    if part == "detect":
        if bench.has("transformers"):
            yield Variant("transformers", "peers.transformers_model:detect", settings, version)
        return
    if bench.config.compiled:
        yield Variant("ours, compiled", "model_subjects:forward", compiled, note=_note(bench))
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
    if bench.has("onnxruntime"):
        if settings["precision"] != "fp32":
            bench.leave_out(f"onnxruntime in {settings['precision']}: it is measured in fp32 only")
            return
        yield Variant("ONNX Runtime", "peers.onnxruntime_model:forward", settings, installed("onnxruntime") or "")


def _note(bench: Bench) -> str:
    return FREED_MEMORY_NOTE if bench.config.device == "cpu" else ""


def _reference(bench: Bench, shape: tuple[int, int]) -> Path:
    """Run the reference model in fp32, one image at a time, on the CPU; return the file of its detections."""
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
    if not (file.exists() and reference.exists()):
        return None
    found = compare_common(read_found(file), read_found(reference))
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
