"""A labelling run: planning, labelling, committing and publishing."""
