"""Checks of a model: it is available, loads on the actors' nodes, and fits there with the batch size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError

from pipelines.actor_resources import Pool
from pipelines.doctor.findings import Finding, may_pass
from pipelines.errors import RayDetrError
from pipelines.labelling.labeler_spec import LabelerSpec, build_detector
from pipelines.models import ModelInfo, identify_model
from pipelines.remote_errors import first_line, remote_sentence
from pipelines.store import StoreOptions

FORWARD_SECONDS = 900.0  # for a worker to start, fetch the model and compute a batch
REMEDY = "See `ray-detr models`, or give a path or an address."
COPY = "copy the model with `ray-detr models --download` and give its address"
_ORIGINS = {
    "answered": ", from the hub",
    "not asked": ", from the cache, which has all files of the commit",
    "offline": ", from the cache: HF_HUB_OFFLINE is set",
}
_CAUTIONS = {
    "limited": ("the hub refuses further requests for now", f"Set HF_TOKEN, which raises the hub's limit, or {COPY}."),
    "unreachable": ("the hub does not answer", f"Nodes without it in their cache cannot load it: {COPY}."),
}
HEIGHT, WIDTH = 960, 1280  # of the images; a usual camera's shape


@dataclass(frozen=True, slots=True)
class Forward:
    """One batch through the network: its size, time, device, and the detector's warnings."""

    images: int
    seconds: float
    device: str
    gpu_bytes: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why no batch was computed on a node, and whether that may pass by itself."""

    text: str
    transient: bool


def identify(model: str, options: StoreOptions) -> ModelInfo | RayDetrError:
    """Return a model's properties as read on this machine, or why they cannot be read here."""
    try:
        return identify_model(model, options)
    except RayDetrError as error:
        return error


def check_here(found: ModelInfo | RayDetrError, *, has_cluster: bool) -> Iterator[Finding]:
    """Yield a finding about the model on this machine; none if nodes of a cluster decide, as they do for `label`.

    Args:
        found: by `identify`.
        has_cluster: whether an existing cluster is used; `label` then takes a model that only its nodes can read.
    """
    if not isinstance(found, RayDetrError):
        yield _identified(found)
    elif not has_cluster:
        yield Finding("model", "fail", str(found), REMEDY, transient=may_pass(found))


def check_on_node(
    spec: LabelerSpec, found: ModelInfo | RayDetrError, pool: Pool | None, *, has_cluster: bool
) -> Iterator[Finding]:
    """Yield findings about the model from a worker of the cluster with the resources of an actor.

    Args:
        spec: for the actors; the run may be empty.
        found: by `identify`.
        pool: resources of an actor; None: the actors do not fit, or no cluster answers, so no node is asked.
        has_cluster: as for `check_here`.
    """
    if not isinstance(found, RayDetrError):
        if pool is not None:
            yield _on_a_node(_forward(replace(spec, pinned=found.pinned), pool))
    elif has_cluster:
        yield from _unreadable_here(spec, pool, str(found))


def _identified(info: ModelInfo) -> Finding:
    """Return a finding about a model that this machine has identified, and on whether the hub answered."""
    text = f"{info.id}, {len(info.categories)} classes"
    if info.hub is None:
        return Finding("model", "ok", text)
    if info.hub.state in _CAUTIONS:
        why, remedy = _CAUTIONS[info.hub.state]
        return Finding("model", "warn", f"{text}, from the cache: {why} ({info.hub.reason})", remedy)
    return Finding("model", "ok", text + _ORIGINS[info.hub.state])


def _unreadable_here(spec: LabelerSpec, pool: Pool | None, error: str) -> Iterator[Finding]:
    """Yield findings about a model that this machine cannot read; a node of the cluster decides, as in `label`."""
    if pool is None:
        yield Finding("model", "warn", error, f"Only this machine was asked; nodes may be able to read it. {REMEDY}")
        return
    found = _forward(spec, pool)
    if isinstance(found, Failure):
        text = f"{error} A node could not use it either: {found.text}"
        yield Finding("model", "fail", text, REMEDY, transient=found.transient)
        return
    yield Finding("model", "warn", f"only nodes of the cluster can read it: {error}", "`ray-detr label` accepts that.")
    yield _on_a_node(found)


def _forward(spec: LabelerSpec, pool: Pool) -> Forward | Failure:
    """Return what a worker with the resources of an actor computed, or why it did not."""
    remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)(try_forward)
    try:
        found: Forward | Failure = ray.get(remote.remote(spec), timeout=FORWARD_SECONDS)
    except ray.exceptions.GetTimeoutError:
        found = Failure(f"no worker computed a batch within {FORWARD_SECONDS:g} s", transient=True)
    except (RayError, ImportError) as error:
        found = Failure(remote_sentence(error), transient=isinstance(error, (TaskUnschedulableError, NodeDiedError)))
    return found


def _on_a_node(found: Forward | Failure) -> Finding:
    if isinstance(found, Failure):
        return Finding(
            "model on a node",
            "fail",
            found.text,
            "Use a smaller --batch-size, a node with more memory, or another --device.",
            transient=found.transient,
        )
    memory = "" if found.gpu_bytes is None else f", {found.gpu_bytes / 1e9:.1f} GB of GPU memory"
    counted = "1 image" if found.images == 1 else f"{found.images} images"
    text = f"{counted} of {WIDTH} x {HEIGHT} in {found.seconds:.2f} s on {found.device}{memory}"
    if found.notes:
        return Finding("model on a node", "warn", f"{text}: {'; '.join(found.notes)}", "Use a smaller --batch-size.")
    return Finding("model on a node", "ok", text)


def try_forward(spec: LabelerSpec) -> Forward | Failure:
    """Load the model and compute one batch of grey images; return why if that fails."""
    import torch

    try:
        detector, _ = build_detector(spec)
        batch = [detector.prepare(torch.full((3, HEIGHT, WIDTH), 114, dtype=torch.uint8))] * detector.batch_size
        began = time.perf_counter()
        detector.detect(batch)
    except (RayDetrError, ValueError, RuntimeError, OSError, MemoryError, FloatingPointError) as error:
        return Failure(first_line(error), may_pass(error))  # a RuntimeError may be CUDA's
    is_cuda = detector.device.type == "cuda"
    return Forward(
        images=len(batch),
        seconds=time.perf_counter() - began,
        device=torch.cuda.get_device_name(detector.device) if is_cuda else "the CPU",
        gpu_bytes=torch.cuda.max_memory_allocated(detector.device) if is_cuda else None,
        notes=detector.take_notes(),
    )
