"""Marks: accepted places of a table whose detections are left out, their records, and the rule what they cover."""
