"""Training: targets, augmentation, matching, loss, optimiser and one step over them."""
