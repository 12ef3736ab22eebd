"""Register the files of a detection table in an Iceberg table, without a copy. Only this module imports pyiceberg."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipelines.errors import RayDetrError
from pipelines.parquet_files import plain_type


def register_files(catalog: str, identifier: str, uris: Sequence[str], schema: pa.Schema) -> int:
    """Add the files that an Iceberg table does not have yet, and return their number.

    The Iceberg table is created if it does not exist. A file that is deleted later is missing in the Iceberg table.

    Args:
        catalog: a catalog that pyiceberg's own configuration names (`~/.pyiceberg.yaml`, `PYICEBERG_CATALOG__...`).
        identifier: `NAMESPACE.TABLE`.
        uris: addresses of Parquet files.
        schema: the columns of all files.

    Raises:
        RayDetrError: pyiceberg is not installed, or it refused.
    """
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError
    except ImportError as error:
        raise RayDetrError(
            "an export to Iceberg needs pyiceberg, which is not installed: pip install 'ray-detr[iceberg]'."
        ) from error
    try:
        opened = load_catalog(catalog)
        try:
            table = opened.load_table(identifier)
        except NoSuchTableError:
            opened.create_namespace_if_not_exists(identifier.rpartition(".")[0])
            table = opened.create_table(identifier, schema=_plain(schema))
        known = set(table.inspect.files()["file_path"].to_pylist())
        new = [uri for uri in uris if uri not in known]
        if new:
            with table.update_schema() as update:
                update.union_by_name(_plain(schema))  # columns of later runs
            table.add_files(new)
    except Exception as error:  # catalogs raise errors from many libraries
        raise RayDetrError(f"cannot register the files in {identifier} of catalog {catalog}: {error}") from error
    return len(new)


def _plain(schema: pa.Schema) -> pa.Schema:
    """Return the columns without dictionaries, which Iceberg does not support."""
    return pa.schema([field.with_type(plain_type(field.type)) for field in schema])
