"""Marks: accepted regions of a table whose detections are left out, their records, and their matching rule."""
