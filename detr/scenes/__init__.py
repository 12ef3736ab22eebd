"""Drawn scenes of plain shapes: the data set of the embedded model and of the demo."""
