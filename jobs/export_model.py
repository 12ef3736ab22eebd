"""Write a DETR as one file for other runtimes: ONNX, or a program of torch.export.

ray-detr export-model --model facebook/detr-resnet-50 --to onnx --out detr.onnx

Batch size, height and width are free. The file is run and compared with the network before it gets its name.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from jobs.exits import run_process
from jobs.options import add_options, check_stays, local_path, make_config
from jobs.parser import CommandParser
from pipelines.store import S3, StoreOptions


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export, print."""
    parser = CommandParser("export-model", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        metavar="REF",
        help="a DETR or Table Transformer: a hub id, a directory, a .pth or .ckpt, a URI, or scenes",
    )
    parser.add_argument(
        "--out", required=True, type=local_path, metavar="FILE", help="new file, ending in .onnx or .pt2"
    )
    parser.add_argument(
        "--to", choices=("onnx", "pt2"), default="onnx", help="onnx, or pt2 for torch.export.load (%(default)s)"
    )
    parser.add_argument(
        "--padding",
        choices=("exact", "plain"),
        default="exact",
        help="exact: an image gives the same result in a padded batch and alone; plain: as in the original "
        "DETR (%(default)s)",
    )
    add_options(parser, StoreOptions, only=S3)
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    check_stays(parser, "--out", str(args.out))

    from pipelines.model_export import export_model

    options = make_config(parser, StoreOptions, args)
    summary = export_model(args.model, args.out, form=args.to, padding=args.padding, options=options)
    if args.json:
        print(json.dumps(asdict(summary), indent=2))
        return
    print(
        f"exported: {summary.model} to {summary.out} ({summary.bytes / 1e6:.1f} MB, {summary.padding} padding); "
        f"scores and boxes differ from the network's by {summary.difference:.1e} at most"
    )


if __name__ == "__main__":
    run_process(main)
