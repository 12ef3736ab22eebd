"""Images: headers without decoding, decoding to upright RGB, resizing, and drawing boxes on them."""
