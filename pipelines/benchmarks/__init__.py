"""Benchmarks that compare this package's detector, commands and training step with other libraries."""
