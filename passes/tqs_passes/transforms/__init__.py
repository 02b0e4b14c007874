"""Graph passes: model in, model out."""
