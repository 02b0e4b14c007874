"""Graph passes: each maps a model to a new model."""
