"""A labelling run: what is planned, labelled, committed and published, by whom and in which order."""
