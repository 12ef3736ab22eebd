"""Export the published rows of a table to files for other programs."""
