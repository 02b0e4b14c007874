"""The user's inputs: a model, contexts, a rollout spec."""
