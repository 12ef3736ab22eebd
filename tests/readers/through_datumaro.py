"""Read a COCO json with datumaro, as CVAT does, and write it back; runs in an environment of its own.

    python through_datumaro.py INSTANCES IMAGES OUT

Prints JSON: of each image `[label, score, xmin, ymin, xmax, ymax]` for each box. OUT becomes a folder.
"""

import json
import shutil
import sys
from pathlib import Path

import datumaro

instances, images, out = map(Path, sys.argv[1:])
folder = out / "in"
(folder / "annotations").mkdir(parents=True)
shutil.copy(instances, folder / "annotations" / "instances_default.json")
shutil.copytree(images, folder / "images" / "default")
data = datumaro.Dataset.import_from(str(folder), "coco_instances")
names = [one.name for one in data.categories()[datumaro.AnnotationType.label]]
boxes = {
    item.id: [
        [names[one.label], one.attributes.get("score"), one.x, one.y, one.x + one.w, one.y + one.h]
        for one in item.annotations
        if one.type == datumaro.AnnotationType.bbox
    ]
    for item in data
}
data.export(str(out / "out"), "coco_instances")
print("\n" + json.dumps(boxes))  # noqa: T201 - its result
