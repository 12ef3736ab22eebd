"""Benchmarks: this package's detector, commands and training step measured beside those of other libraries."""
