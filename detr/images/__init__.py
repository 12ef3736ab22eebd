"""Images: headers without decoding, decoding to upright RGB, resizing, and drawing boxes on them."""

from typing import Final

MAX_PIXELS: Final = 178_956_970
"""Larger images are refused, as Pillow does; as RGB they would take half a gigabyte."""
