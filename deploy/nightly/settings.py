"""Names that every step uses: set them before the first run."""

CLUSTER = "http://YOUR-HEAD:8265"  # dashboard of the Ray cluster
JOB_OPTIONS = []  # of every job: ["--shared-folders"] if the places below are folders that all nodes share

IMAGES = "s3://YOUR-LAKE/"  # the lake
TABLE = "s3://YOUR-TABLES/detections"  # its detections
LABEL_OPTIONS = ["--max-minutes", "300", "--metrics"]  # stops after 5 hours; the next night continues

# The frozen set decides about promotions: its images and annotations are never trained on and never changed.
FROZEN_IMAGES = "s3://YOUR-DATA/frozen/"
FROZEN_ANNOTATIONS = "s3://YOUR-DATA/frozen/instances.json"
MAX_DROP = "0"  # of the AP (0..1) that a promotion allows, below the model in use

# Reviewed labels: what people corrected in CVAT, Label Studio or another tool, as COCO json.
REVIEWED_IMAGES = "s3://YOUR-DATA/reviewed/"
REVIEWED_ANNOTATIONS = "s3://YOUR-DATA/reviewed/instances.json"
TRAIN_OPTIONS = ["--recipe", "finetune", "--metrics"]

SHARDS = "s3://YOUR-RUNS/shards"  # training shards, a folder for each fine-tune
RUNS = "s3://YOUR-RUNS"  # training runs, a folder for each fine-tune
EVALUATIONS = "s3://YOUR-RUNS/evaluations"  # detections of evaluations, a table for each
FIGURES = "s3://YOUR-RUNS/figures"  # figures of evaluations, a file for each
PROMOTIONS = "s3://YOUR-RUNS/promotions"  # a record for each promotion; the last one names the model in use
