"""Convert errors of Ray to one sentence: the node, the reason, and what to do."""

import re


def first_line(error: BaseException) -> str:
    """Return the message of a Ray error without the remote traceback and without colours."""
    lines = _plain(error).splitlines()
    return lines[0] if lines else type(error).__name__


def remote_sentence(error: BaseException) -> str:
    """Return a message about an error on a node: the node, the reason from the traceback's end, a remedy.

    Without a node, the message is the error's first line.
    """
    text = _plain(error)
    node = re.search(r"\bip=([^\s,)]+)", text)
    if node is None:
        return first_line(error)
    reason = text.splitlines()[-1].strip()
    missing = re.search(r"ModuleNotFoundError: No module named '([^']+)'", reason)
    if missing is None:
        return f"on node {node[1]}: {reason}"
    return (
        f"node {node[1]} has no Python package {missing[1]}. Install ray-detr with all it needs on every node, in the "
        "same versions, or submit the command with `ray job submit --working-dir .`"
    )


def _plain(error: BaseException) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
