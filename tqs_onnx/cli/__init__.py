"""The command line: a file a command. The library raises; only here does an error become a line and an exit code."""
