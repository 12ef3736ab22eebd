"""A detector that returns a mask with each detection."""

from collections.abc import Mapping
from pathlib import Path

import torch

from detr.batching import HostBatch
from detr.checkpoints.checkpoint import fingerprint, load
from detr.checkpoints.model_directory import CheckpointError
from detr.detector import Detector, not_finite
from detr.device import float32_arithmetic
from detr.images.decoding import decode
from detr.images.inputs import AnyImage, encoded_or_tensor
from detr.launcher import ReadDetections
from detr.model import Detr
from detr.postprocess import Detections, postprocess, rank, ranking
from detr.precision import Precision
from detr.segmentation.instance_masks import encoded_masks
from detr.segmentation.mask_head import PanopticDetr
from detr.segmentation.masked_detections import MaskedDetections
from detr.segmentation.panoptic import PanopticSegmentation, segment_pixels

PANOPTIC_THRESHOLD = 0.85
"""The original uses queries with a score above this in a panoptic segmentation."""


class MaskDetector(Detector):
    """A panoptic DETR on a device. It finds what `Detector` finds, as `MaskedDetections`.

    The mask head computes only the kept detections, one image at a time, so that masks do not depend on other images in
    the batch. It always computes in float32.
    """

    def __init__(
        self,
        model: Detr | str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        threshold: float = 0.05,
        classes: Mapping[str, float | None] | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ) -> None:
        """Put a model on a device; arguments and errors as those of `Detector`.

        Raises:
            CheckpointError: the model has no mask head.
        """
        network = model if isinstance(model, Detr) else load(model)
        called = name or ("the model" if isinstance(model, Detr) else str(model))
        if not isinstance(network, PanopticDetr):
            raise CheckpointError(
                f"{called} has no mask head, so it gives boxes only. Masks need a panoptic DETR, such as "
                "facebook/detr-resnet-50-panoptic."
            )
        super().__init__(
            network,
            device=device,
            precision=precision,
            threshold=threshold,
            classes=classes,
            batch_size=batch_size,
            name=called,
        )
        if not isinstance(model, Detr):
            self.identity = fingerprint(network)

    @torch.no_grad()
    def segmentation(self, image: AnyImage, *, threshold: float = PANOPTIC_THRESHOLD) -> PanopticSegmentation:
        """Return the panoptic segmentation of one image, equal to the original's `PostProcessPanoptic`.

        Args:
            image: as for a call.
            threshold: only queries with a score above it are used, independent of the detector's own threshold; the
                score is the largest probability over all classes and no-object.

        Raises:
            ImageError: the image cannot be read.
            FloatingPointError: the network returned NaN or infinity, as half precision can.
            torch.OutOfMemoryError: the device has too little memory for the image.
        """
        source = encoded_or_tensor(image)
        prepared = self.prepare(source if isinstance(source, torch.Tensor) else decode(source))
        batch = self.host_batch(1, *prepared.pixels.shape[1:])
        batch.write(0, prepared)
        found: list[PanopticSegmentation] = []

        def launch(batch: HostBatch) -> ReadDetections:
            found.append(self._segment(batch, threshold))
            return list

        self._launcher.submit(batch, launch)
        return found[0]

    def _segment(self, batch: HostBatch, threshold: float) -> PanopticSegmentation:
        """Compute the segmentation of a batch of one image."""
        network = self._network
        assert isinstance(network, PanopticDetr)
        height, width, *upright = batch.sizes[0].tolist()
        (pixels,) = self._transfer.upload(batch.pixels)
        with float32_arithmetic(tf32=self.precision == "tf32"):
            output, features = network.segment(self._normalised(pixels, None), None)
            scores, classes = output.logits[0].float().softmax(-1).max(-1)
            kept = ((classes < self.config.class_count) & (scores > threshold)).nonzero()[:, 0]
            logits = network.mask_logits(features, 0, kept)
        if not _are_finite(output.logits, output.boxes_cxcywh, logits):  # would otherwise look like "nothing found"
            raise not_finite(self.name, self.precision)
        ids = [self.config.categories[index].id for index in classes[kept].tolist()]
        return segment_pixels(logits, torch.tensor(ids), resized=(height, width), image=(upright[0], upright[1]))

    @torch.no_grad()
    def _launch(self, batch: HostBatch) -> ReadDetections:
        """Compute a batch. The calling thread waits for the device to know which detections are kept."""
        network = self._network
        assert isinstance(network, PanopticDetr)
        pixels, sizes = self._transfer.upload(batch.pixels, batch.sizes)
        with float32_arithmetic(tf32=self.precision == "tf32"):
            extents = sizes[:, :2] if batch.is_padded else None
            output, features = network.segment(self._normalised(pixels, extents), extents)
            scores, classes, boxes = postprocess(output, sizes[:, 2:])
            ranked = rank(scores, classes, boxes, self._thresholds)
            order, is_kept = ranking(scores, classes, self._thresholds)
            masks, are_finite = [], True
            for image, (height, width, upright_height, upright_width) in enumerate(batch.sizes.tolist()):
                kept = order[image, : int(is_kept[image].sum())]
                logits = network.mask_logits(features, image, kept)
                are_finite = are_finite and _are_finite(logits)
                masks.append(encoded_masks(logits, resized=(height, width), image=(upright_height, upright_width)))
        found = ranked.cpu()

        def read() -> list[Detections]:
            if not are_finite:
                raise not_finite(self.name, self.precision)
            return [
                MaskedDetections(one.category_ids, one.labels, one.scores, one.boxes_xyxy, own)
                for one, own in zip(self.read(found), masks, strict=True)
            ]

        return read


def _are_finite(*tensors: torch.Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
