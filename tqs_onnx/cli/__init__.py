"""The command line, one file per command. The library raises; only the CLI prints errors and sets exit codes."""
