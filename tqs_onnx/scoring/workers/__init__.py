"""Workers that execute scoring tasks: this process, local processes, or Ray actors."""
