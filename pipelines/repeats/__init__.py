"""Detections that repeat at one place of a folder's pictures: found, accepted by people, and left out by readers."""
