"""Made contexts: contexts nobody measured, generated from the model's graph and its rollout spec."""
