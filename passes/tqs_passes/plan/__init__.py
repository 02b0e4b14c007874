"""The plan: how each weight is stored, and the candidates to choose from."""
