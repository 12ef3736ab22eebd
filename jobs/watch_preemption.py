"""Drain this Ray node when the cloud announces that it will take the machine away.

ray-detr watch-preemption

Start it on every worker node of spot machines, after `ray start`. It polls the instance metadata of AWS or Google
Cloud. Training writes a checkpoint when Ray drains the node. Exits with code 0 once the node is being drained.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.exits import run_process
from jobs.parser import CommandParser

METADATA_URL = "http://169.254.169.254"  # the same for both clouds


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, wait, drain."""
    parser = CommandParser("watch-preemption", __doc__)
    parser.add_argument(
        "--metadata-url", default=METADATA_URL, metavar="URL", help="address of the metadata service (%(default)s)"
    )
    parser.add_argument(
        "--poll-seconds", type=_seconds, default=5.0, metavar="N", help="seconds between two requests (%(default)s)"
    )
    parser.add_argument(
        "--on-rebalance",
        action="store_true",
        help="also drain on AWS's rebalance recommendation, which can come long before an interruption or without one",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="address of the Ray cluster (RAY_ADDRESS, else the Ray of this machine)"
    )
    parser.add_argument("--node-id", metavar="ID", help="node to drain (this machine's node)")
    args = parser.parse_args(argv)

    from pipelines.training.instance_metadata import find_service
    from pipelines.training.preemption import drain, own_node, wait_for_notice

    try:
        service = find_service(args.metadata_url, on_rebalance=args.on_rebalance)
    except ValueError as error:
        parser.error(str(error))
    address, own = own_node(args.address)
    node_id = args.node_id or own
    print(f"watching {service.cloud}'s notices for node {node_id} of {address}", file=sys.stderr)
    notice = wait_for_notice(service, poll_seconds=args.poll_seconds)
    left = "" if notice.seconds is None else f", in {notice.seconds:.0f} s"
    print(f"{notice.reason}{left}: draining node {node_id}", file=sys.stderr)
    drain(address, node_id, notice)
    print(f"drained: node {node_id}")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.1 <= value <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not in 0.1..60")
    return value


if __name__ == "__main__":
    run_process(main)
