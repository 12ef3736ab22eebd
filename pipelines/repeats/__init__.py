"""Find detections that repeat at one position in a folder's pictures, so that people can accept them as marks."""
