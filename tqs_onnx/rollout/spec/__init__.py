"""The rollout spec: read, and checked against the model."""
