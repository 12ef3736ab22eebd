"""Which images there are: prefixes, globs, tables of URIs as one ordered stream."""
