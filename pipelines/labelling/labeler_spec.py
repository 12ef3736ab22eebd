"""The specification that is sent to an actor, and the construction of its labeler. Torch is imported only for that."""

from __future__ import annotations

import logging
import socket
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from detr.images.heic import has_decoder
from pipelines.clock import SystemClock
from pipelines.errors import RayDetrError, UsageError
from pipelines.labelling.process_time import DECODE_SECONDS
from pipelines.lake.images import ImageStores
from pipelines.lake.member_files import MemberIndexes
from pipelines.models import ModelInfo, load_detector
from pipelines.process_memory import keep_freed_memory
from pipelines.store import StoreOptions, open_store

if TYPE_CHECKING:
    from detr.detector_like import DetectorLike
    from detr.precision import Precision
    from detr.tiles import Tiling
    from pipelines.labelling.decoding import ImageDecoder
    from pipelines.labelling.labeler import Labeler


@dataclass(frozen=True, slots=True)
class LabelerSpec:
    """Everything that an actor needs, without secrets: the actor opens stores and finds credentials itself.

    `isolated`: the shards were lost before, so their images are decoded in child processes. `settings`: of the run, for
    the rows. `pool`: a random name of the actor's pool. `model_id`: the name of the model in rows; empty is the model's
    own. `may_stop`: whether the driver can stop the start of further shards. `masks`: whether each detection gets a
    mask. `tiling`: how large pictures are cut into tiles. `pinned`: the hub id of the model with the commit that the
    driver found; None: it does not come from the hub. `heic`: whether the driver could decode HEIC, so that an actor
    that cannot does not start.
    """

    table: str
    run_id: str
    model: str
    model_sha256: str
    threshold: float
    classes: tuple[tuple[str, float | None], ...] | None
    device: str
    precision: Precision
    threads: int
    max_pixels: int
    image_options: StoreOptions
    table_options: StoreOptions
    batch_size: int | None = None
    settings: str = ""
    isolated: bool = False
    pool: str = ""
    model_id: str = ""
    decode_seconds: float = DECODE_SECONDS
    may_stop: bool = False
    masks: bool = False
    tiling: Tiling | None = None
    pinned: str | None = None
    heic: bool = False


def build_detector(spec: LabelerSpec) -> tuple[DetectorLike, ModelInfo]:
    """Load the model onto the device.

    Raises:
        RayDetrError: the model, a class name or the device is wrong, or the model is not the one of the run.
    """
    import torch

    torch.set_num_threads(spec.threads)
    try:
        detector, info = _load(spec)
    except ValueError as error:
        raise RayDetrError(str(error)) from error
    if spec.model_sha256 and info.sha256 != spec.model_sha256:
        raise RayDetrError(
            f"the model {spec.model} on this node differs from the one that the run began with ({info.sha256[:12]}, "
            f"not {spec.model_sha256[:12]}). Use a revision, or a path that is the same model everywhere."
        )
    return detector, info


def _load(spec: LabelerSpec) -> tuple[DetectorLike, ModelInfo]:
    load = partial(
        load_detector,
        options=spec.table_options,
        device=spec.device,
        precision=spec.precision,
        threshold=spec.threshold,
        classes=None if spec.classes is None else dict(spec.classes),
        batch_size=spec.batch_size,
        masks=spec.masks,
        tiling=spec.tiling,
    )
    if spec.pinned is None:
        return load(spec.model)
    try:
        return load(spec.pinned)
    except UsageError:
        raise
    except RayDetrError as error:
        # a node that cannot reach the hub may have another commit with the same weights, which the caller checks
        logging.getLogger(__name__).warning("%s Loading %s instead.", error, spec.model)
        return load(spec.model)


def build_decoder(spec: LabelerSpec, detector: DetectorLike) -> ImageDecoder:
    """Return the decoder: in this process, or in child processes.

    Raises:
        RayDetrError: this node does not run Linux, or cannot decode HEIC, although the driver can.
    """
    if sys.platform != "linux":
        raise RayDetrError(
            f"node {socket.gethostname()} runs {sys.platform}: labelling needs Linux, because the supervision of "
            "decoding reads /proc. Use nodes with Linux; `ray-detr detect` also runs elsewhere."
        )
    from pipelines.labelling.decoding import InProcessDecoder, PreparedHere, limits_for
    from pipelines.labelling.isolated_decoding import DecoderInChild
    from pipelines.labelling.watched_decoding import WatchedDecoder, end_process

    if spec.heic and not has_decoder():  # nodes that are there at the start are compared then; others join later
        raise RayDetrError(
            f"node {socket.gethostname()} lacks the package pillow-heif, which the driver has: HEIC images would have "
            "permanent errors. pip install 'ray-detr[heif]' on every node."
        )
    limits = limits_for(spec.max_pixels, spec.decode_seconds)
    if not spec.isolated:
        return WatchedDecoder(InProcessDecoder(detector, max_pixels=spec.max_pixels), limits, on_hang=end_process)
    in_child = DecoderInChild(
        size_rule=detector.size_rule,
        max_pixels=spec.max_pixels,
        threads=spec.threads,
        limits=limits,
    )
    return in_child if detector.size_rule is not None else PreparedHere(in_child, detector)


def build_labeler(spec: LabelerSpec) -> Labeler:
    """Open the stores, load the model and return the labeler of the run's shards.

    Raises:
        RayDetrError: see `build_detector`, or the plan is damaged.
        StoreError: the table's store refused.
    """
    from pipelines.labelling.fetching import Fetcher, image_options
    from pipelines.labelling.labeler import Labeler

    detector, info = build_detector(spec)
    if detector.device.type == "cpu":
        keep_freed_memory()
    table = open_store(spec.table, spec.table_options)
    return Labeler(
        table=table,
        fetcher=Fetcher(ImageStores(image_options(spec.image_options), MemberIndexes(table)), SystemClock()),
        decoder=build_decoder(spec, detector),
        detector=detector,
        run_id=spec.run_id,
        model_id=spec.model_id or info.id,
        threshold=spec.threshold,
        settings=spec.settings,
        decode_threads=spec.threads,
    )
