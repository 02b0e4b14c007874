"""Read the rollout spec and check it against the model."""
