"""COCO evaluation: detections as results rows, and their average precision."""
