"""What is published of a table, in files for others: rows as Parquet or JSON lines."""
