"""The review loop: images of a detection table for people to correct, and corrections as training shards."""
