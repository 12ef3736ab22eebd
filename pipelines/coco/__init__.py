"""Reader of COCO's json in the variants found in practice, for sharding and evaluation."""
