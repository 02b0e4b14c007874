"""Compute precision: chooses the nodes that may compute in 16-bit floats, and converts them."""
