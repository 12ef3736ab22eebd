"""The commands, one file each: parse arguments, make one call, print the result, set the exit code."""
