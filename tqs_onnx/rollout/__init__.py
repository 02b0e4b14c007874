"""Roll a model out: the spec, the contexts, the session and the trajectory."""
