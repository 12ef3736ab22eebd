"""Panoptic DETR: masks of detections, panoptic segmentations, and their quality. No other package uses masks."""
