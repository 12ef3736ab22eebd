"""Evaluation of a table, a results file or a model against COCO annotations."""
