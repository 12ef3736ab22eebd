"""The report of a table: one HTML page that shows figures, pictures with boxes, and comparisons."""
