"""Read an export with the tool that receives it; runs in an environment of its own (`make test-readers`).

    python reading.py FORMAT PATH [IMAGES]

Prints JSON: of each image `[label, score or null, xmin, ymin, xmax, ymax]` for each box, and `failures` where the
format has them.
"""

import json
import sys
from pathlib import Path


def voc(path, images):
    import supervision

    data = supervision.DetectionDataset.from_pascal_voc(images, f"{path}/Annotations")
    return of_supervision(data), {}


def yolo(path, images):
    import supervision

    data = supervision.DetectionDataset.from_yolo(images, f"{path}/labels", f"{path}/data.yaml")
    boxes = of_supervision(data)
    for name, found in boxes.items():  # the sixth number, which the loader checks and leaves out
        lines = (Path(path) / "predictions" / name).with_suffix(".txt").read_text().splitlines()
        for box, line in zip(found, lines, strict=True):
            box[1] = float(line.split()[5])
    return boxes, {}


def coco_dataset(path, images):
    import supervision

    data = supervision.DetectionDataset.from_coco(images, path)
    return of_supervision(data), {}


def of_supervision(data):
    return {
        Path(name).name: [
            [data.classes[number], None, *map(float, box)]
            for number, box in zip(found.class_id, found.xyxy, strict=True)
        ]
        for name, found in data.annotations.items()
    }


def megadetector(path, images):
    from megadetector.postprocessing.validate_batch_results import ValidateBatchResultsOptions, validate_batch_results

    options = ValidateBatchResultsOptions()
    options.check_image_existence = True
    options.relative_path_base = images
    options.return_data = True
    data = validate_batch_results(path, options)
    results = data["validation_results"]
    assert not results["errors"], results
    boxes, failures = {}, {}
    for image in data["images"]:
        if image.get("failure"):
            failures[image["file"]] = image["failure"]
            continue
        wide, high = image["width"], image["height"]
        boxes[image["file"]] = [
            [
                data["detection_categories"][one["category"]],
                one["conf"],
                x * wide,
                y * high,
                (x + w) * wide,
                (y + h) * high,
            ]
            for one in image["detections"]
            for x, y, w, h in [one["bbox"]]
        ]
    return boxes, failures


def labelstudio(path, images):
    from label_studio_sdk.label_interface import LabelInterface

    del images
    boxes = {}
    for task in json.loads(Path(path).read_text()):
        (prediction,) = task["predictions"]
        labels = sorted({one["value"]["rectanglelabels"][0] for one in prediction["result"]} | {"x"})
        listed = "".join(f'<Label value="{label}"/>' for label in labels)
        interface = LabelInterface(
            f'<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">{listed}'
            "</RectangleLabels></View>"
        )
        problems = interface.validate_prediction(prediction, return_errors=True)
        assert not problems, problems
        found = []
        for one in prediction["result"]:
            value, wide, high = one["value"], one["original_width"] / 100, one["original_height"] / 100
            low = (value["x"] * wide, value["y"] * high)
            sides = (*low, low[0] + value["width"] * wide, low[1] + value["height"] * high)
            found.append([value["rectanglelabels"][0], one["score"], *sides])
        boxes[task["data"]["image"].rpartition("/")[2]] = found
    return boxes, {}


def iceberg(path, images):
    from pyiceberg.catalog import load_catalog

    del images
    boxes, failures = {}, {}
    for row in load_catalog("default").load_table(path).scan().to_arrow().to_pylist():
        name = row["uri"].rpartition("/")[2]
        if row["status"] == "error":
            failures[name] = f"{row['error_kind']}: {row['error']}"
        else:
            boxes[name] = [[one["label"], one["score"], *one["box"].values()] for one in row["detections"]]
    return boxes, failures


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    boxes, failures = globals()[kind.replace("-", "_")](*rest)
    print("\n" + json.dumps({"boxes": boxes, "failures": failures}))  # noqa: T201 - its result
