"""Subjects of other libraries, one file each. Only these files import them, and only for measurements."""
