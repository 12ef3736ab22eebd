"""Training on a cluster: recipe, order, ingest, workers, checkpoints, log."""
