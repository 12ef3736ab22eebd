"""One command a file: arguments, one call, what is printed, the exit code."""
