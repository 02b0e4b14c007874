"""Find the weights of a model and name them."""
