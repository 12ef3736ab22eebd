"""How long decoding an image may take, unless a run says otherwise."""

DECODE_SECONDS = 120.0
"""Of CPU time, or asleep: decoding never waits for anything but a core, a disk, or Python's lock."""
