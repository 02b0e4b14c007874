"""What the user hands over: a model, contexts, a rollout spec."""
