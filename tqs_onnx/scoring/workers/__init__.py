"""Who measures: this process, local processes, or Ray actors."""
