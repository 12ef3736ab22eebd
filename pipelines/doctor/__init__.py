"""Checks of an installation before a run: cluster, machine, stores and model."""
