"""The detection table: columns, file names, and a first look at its rows."""
