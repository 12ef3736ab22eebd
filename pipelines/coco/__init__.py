"""COCO's json as people have it: one reader for sharding and for evaluation."""
