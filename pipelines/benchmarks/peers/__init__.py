"""Subjects of other libraries, a file each; only these import them, and only when one is measured."""
