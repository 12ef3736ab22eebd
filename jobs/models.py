"""List the published models that are known to load, or copy a model to a folder or bucket.

ray-detr models
ray-detr models --download facebook/detr-resnet-50 --out s3://models/detr-resnet-50

A copy serves clusters that cannot reach the hub: `--model s3://models/detr-resnet-50`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from jobs.exits import run_process
from jobs.options import add_options, check_stays, make_config
from jobs.parser import CommandParser
from pipelines.store import S3, StoreOptions


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, list or copy, print."""
    parser = CommandParser("models", __doc__)
    parser.add_argument(
        "--download", metavar="REF", help="model to copy: a hub id with optional @revision, or a folder"
    )
    parser.add_argument("--out", metavar="URI", help="where to copy it: a new folder, local or in a bucket")
    add_options(parser, StoreOptions, only=S3)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    if (args.download is None) != (args.out is None):
        parser.error("--download and --out belong together")
    check_stays(parser, "--out", args.out)

    from detr.families import FAMILIES
    from pipelines.model_catalog import CATALOG, copy_model, is_available

    if args.download is not None:
        options = make_config(parser, StoreOptions, args)
        info = copy_model(args.download, args.out, options)
        if args.json:
            print(json.dumps({"model": info.id, "sha256": info.sha256, "out": args.out}, indent=2))
        else:
            print(f"copied: {info.id} ({len(info.categories)} classes) to {args.out}\nuse it:  --model {args.out}")
        return
    if args.json:
        print(json.dumps([{**asdict(model), "available": is_available(model)} for model in CATALOG], indent=2))
        return
    print(f"{'model':52}{'detects':17}{'classes':>7}{'AP':>7}  {'license':12}here")
    for model in CATALOG:
        ap = "" if model.ap is None else f"{model.ap:.1f}"
        here = "yes" if is_available(model) else "no"
        print(f"{model.name:52}{model.task:17}{model.classes:>7}{ap:>7}  {model.license:12}{here}")
    print("\nAP: COCO val2017, as published by the authors. here: loads without the network.")
    print(
        f"Other checkpoints of {', '.join(FAMILIES.values())} load through transformers (docs/models.md): "
        "pip install 'ray-detr[transformers]'"
    )


if __name__ == "__main__":
    run_process(main)
