"""The images to label: prefixes, globs and lists of URIs as one ordered stream."""
