"""Training shards: a COCO json and its images as Parquet, made and read."""
