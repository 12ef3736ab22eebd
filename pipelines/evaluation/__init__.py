"""How good detections are: of a table, a results file or a model."""
