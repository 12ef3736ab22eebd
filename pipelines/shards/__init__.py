"""Training shards: the annotations of a COCO json and its images as Parquet files."""
