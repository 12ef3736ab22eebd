"""Stages of the GPU check; each runs in a separate process and appends its figures."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from detr.scenes.files import write_scenes
from pipelines.benchmarks import model_subjects, train_subjects
from pipelines.benchmarks.agreement import compare_common, read_found
from pipelines.benchmarks.gpu import device_facts
from pipelines.benchmarks.gpu_check import put
from pipelines.benchmarks.label_subjects import network_alone
from pipelines.benchmarks.machine import installed
from pipelines.benchmarks.random_model import copy_model, write_random_model
from pipelines.benchmarks.roofline import Card, most_images_per_s

SHAPE, SMOKE_SHAPE = (800, 1066), (96, 128)
TRAIN_SHAPE, SMOKE_TRAIN_SHAPE = (640, 864), (64, 96)
DISTINCT = 8
REFERENCE = "reference.npz"
FAILURES = (
    RuntimeError,  # includes errors of CUDA and the compiler, and out of memory
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
)
"""Errors of one figure after which the other figures of its stage are still measured."""
CEILINGS = "ceilings.json"
Settings = dict[str, Any]


def write_model(settings: Settings, folder: Path) -> Settings:
    """Write the random model, and the photographs of the label stage."""
    smoke = settings["smoke"]
    shutil.rmtree(folder / "model", ignore_errors=True)
    if smoke:  # the small model of the package: a DETR-R50 takes minutes to compile on a CPU
        copy_model({"model": "scenes"}, folder)
    else:
        write_random_model({"variant": "detr-resnet-50", "seed": 0, "shorter": 800, "longest": 1333}, folder)
    shutil.rmtree(folder / "lake", ignore_errors=True)
    drawn = 6 if smoke else 120
    write_scenes(folder / "scenes", drawn, 17)
    (folder / "lake").mkdir()
    for number in range(12 if smoke else 1200):
        source = folder / "scenes" / f"scene_17_{number % drawn:06d}.jpg"
        shutil.copyfile(source, folder / "lake" / f"{number:06d}.jpg")
    put(settings, "device", device_facts())
    return {}


def ceilings(settings: Settings, folder: Path) -> Settings:
    """Measure the limits of the card: matrix products, copies, uploads."""
    smoke, device = settings["smoke"], _device(settings)
    size = 256 if smoke else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    took = _seconds(lambda: a @ b, device)
    tflops = 2 * size**3 / took / 1e12
    put(settings, "bf16 matrix product, TFLOP/s", round(tflops, 1))
    source = torch.randn(10**5 if smoke else 10**9, device=device)
    target = torch.empty_like(source)
    took = _seconds(lambda: target.copy_(source), device)
    terabytes = 2 * source.numel() * 4 / took / 1e12
    put(settings, "copy, TB/s read and written", round(terabytes, 2))
    card = Card("measured", tflops, terabytes)
    put(settings, "roofline, images/s at 800x1066, 16 bit, fused", round(most_images_per_s(card, *SHAPE)))
    batch = torch.zeros((2 if smoke else 32, *SHAPE, 3), dtype=torch.uint8)
    put(
        settings,
        "upload of a pageable batch, ms",
        round(1e3 * _seconds(lambda: batch.to(device, copy=True), device), 2),
    )
    if device == "cuda":
        pinned = batch.pin_memory()
        took = _seconds(lambda: pinned.to(device, non_blocking=True), device)
        put(settings, "upload of a pinned batch, ms", round(1e3 * took, 2))
    (folder / CEILINGS).write_text(f"{tflops} {terabytes}")
    return {}


def parity(settings: Settings, folder: Path) -> Settings:
    """Compare every precision with fp32 on the CPU for each image; then create the reference for the speeds."""
    device = _device(settings)
    few = {**_shared(settings), "images": 2, "batch": 1, "seconds": 0.0}
    exact = {**few, "device": "cpu", "precision": "fp32", "found": "cpu.npz"}
    model_subjects.forward(exact, folder)
    variants: list[tuple[str, Callable[[Settings, Path], Any], Settings]] = [
        ("ours fp32 without TF32", model_subjects.forward, {"precision": "fp32", "exact": True}),
        ("ours fp32 detector", model_subjects.detect, {"precision": "fp32"}),
        ("ours bf16 detector", model_subjects.detect, {"precision": "bf16"}),
        ("ours bf16 detector, two in a batch", model_subjects.detect, {"precision": "bf16", "batch": 2}),
        ("ours fp16 detector", model_subjects.detect, {"precision": "fp16"}),
    ]
    if installed("transformers") is not None:
        from pipelines.benchmarks.peers import transformers_model

        variants += [
            ("transformers fp32", transformers_model.forward, {"precision": "fp32"}),
            ("transformers bf16", transformers_model.forward, {"precision": "bf16"}),
        ]
    for name, subject, own in variants:
        _figure(
            settings,
            name,
            lambda subject=subject, own=own: (  # type: ignore[misc]
                subject({**few, "device": device, "found": "parity.npz", **own}, folder),
                _agreement(folder / "parity.npz", folder / "cpu.npz"),
            )[1],
        )
    _trained(settings, folder, few)
    all_of_them = {
        **_shared(settings),
        "batch": 1,
        "seconds": 0.0,
        "device": device,
        "precision": "fp32",
        "exact": True,
    }
    model_subjects.forward({**all_of_them, "images": DISTINCT, "found": REFERENCE}, folder)
    return {}


def _trained(settings: Settings, folder: Path, few: Settings) -> None:
    """Compare the precisions on real detections of the package's trained model."""
    shape = [96, 128] if settings["smoke"] else [384, 512]
    own = {**few, "model": "scenes", "shape": shape, "images": 4 if settings["smoke"] else 32, "batch": 4}
    exact = {**own, "device": "cpu", "precision": "fp32", "batch": 1, "found": "trained.npz"}
    _figure(settings, "trained model, fp32 on the CPU", lambda: model_subjects.detect(exact, folder) and None)
    for precision in ("fp32", "bf16", "fp16"):
        given = {**own, "device": _device(settings), "precision": precision, "found": "parity.npz"}
        _figure(
            settings,
            f"trained model, {precision}",
            lambda given=given: (  # type: ignore[misc]
                model_subjects.detect(given, folder),
                _agreement(folder / "parity.npz", folder / "trained.npz"),
            )[1],
        )


def network(settings: Settings, folder: Path) -> Settings:
    """Measure the detector and the network alone by precision and batch, compared with `transformers`."""
    smoke = settings["smoke"]
    batches = (2, 1) if smoke else (32, 8, 1)
    for batch in batches:
        for precision in ("fp16", "bf16", "fp32"):  # fp16 is what "auto" means on GPUs
            if (precision == "bf16" and batch != batches[0]) or (precision == "fp32" and batch == 8):
                continue
            own = {"batch": batch, "precision": precision}
            _speed(settings, folder, f"ours, detector, {precision}, batch {batch}", model_subjects.detect, own)
            _speed(settings, folder, f"ours, network, {precision}, batch {batch}", model_subjects.forward, own)
            if installed("transformers") is not None:
                from pipelines.benchmarks.peers import transformers_model

                name = f"transformers, network, {precision}, batch {batch}"
                _speed(settings, folder, name, transformers_model.forward, own)
    if installed("transformers") is not None:
        from pipelines.benchmarks.peers import transformers_model

        own = {"batch": batches[0], "precision": "fp16"}
        _speed(
            settings, folder, f"transformers, to detections, fp16, batch {batches[0]}", transformers_model.detect, own
        )
        own = {**own, "tuned": True}
        _speed(settings, folder, f"transformers, tuned, fp16, batch {batches[0]}", transformers_model.forward, own)
    return {}


def compiled(settings: Settings, folder: Path) -> Settings:
    """Measure the compiled network and compiled `transformers`, including compile time."""
    batch = 1 if settings["smoke"] else 32
    own = {"batch": batch, "precision": "fp16", "compile": True}
    _speed(settings, folder, f"ours, network, fp16, batch {batch}, compiled", model_subjects.forward, own)
    if installed("transformers") is not None:
        from pipelines.benchmarks.peers import transformers_model

        torch._dynamo.reset()  # noqa: SLF001 - there is no public name
        name = f"transformers, network, fp16, batch {batch}, compiled"
        _speed(settings, folder, name, transformers_model.forward, own)
    return {}


def label(settings: Settings, folder: Path) -> Settings:
    """Measure the labeler from files to committed parts, and the network alone on the same photographs. Without Ray."""
    files = sorted((folder / "lake").iterdir())
    device = _device(settings)
    own = {"model": str(folder / "model"), "device": device, "precision": "auto", "threads": _threads(settings)}
    some = [str(file) for file in files[: 6 if settings["smoke"] else 256]]
    alone = network_alone({**own, "files": some, "seconds": _least(settings)}, folder)["steady"]
    rate = alone["images"] / alone["wall_s"]
    put(settings, "network alone, images/s", round(rate, 1))
    put(settings, "network alone, gpu", alone["gpu"])
    from pipelines.benchmarks.labeler_alone import label_folder

    for name in ("first run", "second run"):  # the first one warms the device up
        seconds, reports = label_folder(folder / "lake", folder / f"table_{name[:5]}", own)
        images = sum(report.images for report in reports)
        put(
            settings,
            f"labeler, {name}",
            {
                "images": images,
                "images_per_s": round(images / seconds, 1),
                "share_of_network_alone": round(images / seconds / rate, 3),
                "errors": sum(sum(report.errors.values()) for report in reports),
                "decode_s": round(sum(report.decode_seconds for report in reports), 2),
                "detect_s": round(sum(report.detect_seconds for report in reports), 2),
                "fetch_s": round(sum(report.fetch_seconds for report in reports), 2),
            },
        )
    return {}


def train(settings: Settings, folder: Path) -> Settings:
    """Measure a training step by precision and batch, compared with `transformers`."""
    shape = SMOKE_TRAIN_SHAPE if settings["smoke"] else TRAIN_SHAPE
    for batch in (2,) if settings["smoke"] else (16, 2):
        for precision in ("bf16", "fp32"):
            own = {
                "shape": list(shape),
                "batch": batch,
                "precision": precision,
                "device": _device(settings),
                "threads": _threads(settings),
                "seconds": 1.5 * _least(settings),
            }

            def step(subject: Callable[[Settings, Path], Any], own: Settings = own) -> Settings:
                returned = subject(own, folder)
                return {**_rate(returned["steady"]), "loss": returned["loss"]}

            _figure(settings, f"ours, {precision}, batch {batch}", lambda step=step: step(train_subjects.step))  # type: ignore[misc]
            if installed("transformers") is not None:
                from pipelines.benchmarks.peers import transformers_train

                name = f"transformers, {precision}, batch {batch}"
                _figure(settings, name, lambda step=step: step(transformers_train.step))  # type: ignore[misc]
    return {}


def kernels(settings: Settings, folder: Path) -> Settings:
    """List the slowest kernels of a batch, and count how often the host waits."""
    import warnings

    from detr.batching import Prepared
    from detr.detector import Detector

    device = _device(settings)
    shared = _shared(settings)
    height, width = shared["shape"]
    detector = Detector(str(folder / "model"), device=device, precision="auto")
    batch = [
        Prepared(pixels, height, width) for pixels in model_subjects.drawn_pixels({**shared, "images": _most(settings)})
    ]
    detector.detect(batch)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            detector.detect(batch)
        torch.cuda.set_sync_debug_mode("default")
        put(settings, "host waits of a batch", sum("synchroniz" in str(one.message) for one in seen))
    kind = torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        detector.detect(batch)
    rows = [
        (
            event.key[:80],
            round((event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e3, 2),
            event.count,
        )
        for event in profile.key_averages()
    ]
    put(settings, "kernels: name, ms, calls", sorted(rows, key=lambda row: -row[1])[:25])
    return {}


def _speed(
    settings: Settings, folder: Path, name: str, subject: Callable[[Settings, Path], Any], own: Settings
) -> None:
    """Record one variant's images per second, its agreement, and its share of the measured roofline."""
    shared = _shared(settings)
    found = folder / "speed.npz"
    found.unlink(missing_ok=True)

    def measure() -> Settings:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        images = max(DISTINCT, own["batch"])
        full = {**shared, "images": images, "device": _device(settings), "found": found.name, **own}
        returned = subject({**full, "seconds": _least(settings)}, folder)
        value = {**_rate(returned["steady"]), "agreement": _agreement(found, folder / REFERENCE)}
        if "compile" in own:
            value["first_call_cpu_s"] = round(returned["phases"]["first"] + returned["phases"]["warm up"], 1)
        if own["precision"] != "fp32" and (folder / CEILINGS).exists():
            tflops, terabytes = map(float, (folder / CEILINGS).read_text().split())
            most = most_images_per_s(Card("measured", tflops, terabytes), *shared["shape"])
            value["roofline_share"] = round(value["images_per_s"] / most, 3)
        return value

    _figure(settings, name, measure)


def _figure(settings: Settings, name: str, measure: Callable[[], Any]) -> None:
    """Record the result or the error of `measure`; the stage continues."""
    began = time.perf_counter()
    try:
        value = measure()
    except FAILURES as error:
        value = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if isinstance(value, dict):
        value["stage_s"] = round(time.perf_counter() - began, 1)
    put(settings, name, value)


def _agreement(found: Path, reference: Path) -> Settings | None:
    """Compare detections with the reference, which later detections repeat."""
    if not (found.exists() and reference.exists()):
        return None
    return dict(asdict(compare_common(read_found(found), read_found(reference))).items())


def _rate(steady: Settings) -> Settings:
    return {
        "images_per_s": round(steady["images"] / steady["wall_s"], 2),
        "cpu_ms_per_image": round(1e3 * steady["cpu_s"] / steady["images"], 2),
        "images": steady["images"],
        "gpu": steady["gpu"],
    }


def _seconds(call: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Return the mean wall seconds of a call after three warm-up calls."""
    for _ in range(3):
        call()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _shared(settings: Settings) -> Settings:
    shape = SMOKE_SHAPE if settings["smoke"] else SHAPE
    return {"shape": list(shape), "threads": _threads(settings), "distinct": DISTINCT}


def _device(settings: Settings) -> str:
    return "cpu" if settings["smoke"] else "cuda"


def _threads(settings: Settings) -> int:
    return 1 if settings["smoke"] else torch.get_num_threads()


def _least(settings: Settings) -> float:
    return 0.0 if settings["smoke"] else 1.5


def _most(settings: Settings) -> int:
    return 2 if settings["smoke"] else 32
