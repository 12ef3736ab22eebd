"""List published models that load and those in the hub's cache, or copy one to a folder or bucket.

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
    from pipelines.model_catalog import CATALOG, copy_model, is_available, other_cached_models

    if args.download is not None:
        options = make_config(parser, StoreOptions, args)
        info = copy_model(args.download, args.out, options)
        if args.json:
            print(json.dumps({"model": info.id, "sha256": info.sha256, "out": args.out}, indent=2))
        else:
            print(f"copied: {info.id} ({len(info.categories)} classes) to {args.out}\nuse it:  --model {args.out}")
        return
    models = {model: is_available(model) for model in CATALOG} | dict.fromkeys(other_cached_models(), True)
    if args.json:
        print(json.dumps([{**asdict(model), "available": here} for model, here in models.items()], indent=2))
        return
    print(f"{'model':52}{'detects':17}{'classes':>7}{'AP':>7}  {'license':12}here")
    for model, is_here in models.items():
        ap = "" if model.ap is None else f"{model.ap:.1f}"
        start = f"{model.name:52}{model.task or '':17}{model.classes or '':>7}{ap:>7}"
        print(f"{start}  {model.license or '':12}{'yes' if is_here else 'no'}")
    print("\nAP: COCO val2017, as published by the authors. here: loads without the network.")
    print("Get one: give its name as --model, or copy it with ray-detr models --download NAME --out FOLDER.")
    print(
        f"Other checkpoints of {', '.join(FAMILIES.values())} load through transformers (docs/models.md): "
        "pip install 'ray-detr[transformers]'"
    )


if __name__ == "__main__":
    run_process(main)
