"""Panoptic DETR: masks of detections, panoptic segmentations, and their quality. Nothing else knows about masks."""
