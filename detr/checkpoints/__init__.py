"""Load and save models in the formats of the original DETR, of transformers and of this package."""
