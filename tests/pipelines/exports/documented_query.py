"""The query of docs/table.md that selects the current rows of a table."""

from __future__ import annotations

from pathlib import Path

_PAGE = (Path(__file__).parents[3] / "docs" / "table.md").read_text()


def documented_query(table: str, model: str | None = None) -> str:
    """Return the query for a table and, as the page says, with a filter of the model before QUALIFY."""
    query = _PAGE.partition("## The current row of an image")[2].partition("```sql\n")[2].partition("```")[0]
    where = "" if model is None else "WHERE model = '{}' ".format(model.replace("'", "''"))
    return query.replace("TABLE/", f"{table}/").replace("QUALIFY", f"{where}QUALIFY")
