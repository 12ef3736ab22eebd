"""Run the code cells of a notebook in order, without Jupyter, and write what they print and show into it.

    python scripts/run_notebook.py docs/walkthrough.ipynb

As in Jupyter the cells share one namespace, and the value of a cell's last line is shown. `%` and `!` do not work.
The first error stops the run and leaves the notebook as it is. The notebook's metadata get a checksum of its cells, by
which a test notices code that was changed and not run again.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def sources_checksum(notebook: Json) -> str:
    """Return the SHA-256 of the code of all cells."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def run(notebook: Json) -> None:
    """Run the code cells of a notebook, and replace their outputs.

    Raises:
        Exception: whatever a cell raises.
    """
    namespace: Json = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run_cell("".join(cell["source"]), f"<cell {count}>", namespace)
        outputs: list[Json] = []
        if printed.getvalue():
            outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
        if value is not None:
            shown = {"data": _shown(value), "execution_count": count, "metadata": {}, "output_type": "execute_result"}
            outputs.append(shown)
        cell |= {"execution_count": count, "outputs": outputs}
    notebook["metadata"]["sources_sha256"] = sources_checksum(notebook)


def _run_cell(source: str, name: str, namespace: Json) -> object:
    """Run a cell, and return the value of its last line, if that is an expression."""
    body = ast.parse(source, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), namespace)  # noqa: S102 - running a notebook is what this does
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), namespace)  # noqa: S307


def _shown(value: object) -> Json:
    """Return Jupyter's representations of a value: text, and other formats of the value."""
    data: Json = {"text/plain": _lines(repr(value))}
    for kind, method in (("text/html", "_repr_html_"), ("image/png", "_repr_png_"), ("image/jpeg", "_repr_jpeg_")):
        if hasattr(value, method):
            form = getattr(value, method)()
            data[kind] = base64.b64encode(form).decode() if isinstance(form, bytes) else _lines(form)
    return dict(sorted(data.items()))


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, help="write to this file (the notebook itself)")
    args = parser.parse_args(argv)
    out = (args.out or args.notebook).resolve()  # cells may change the folder
    notebook = json.loads(args.notebook.read_text())
    run(notebook)
    out.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {out}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
