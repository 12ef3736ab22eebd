"""Checkpoints: models loaded and saved in the layouts of the original, of transformers and of this package."""
