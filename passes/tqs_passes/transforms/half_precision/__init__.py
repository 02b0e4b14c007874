"""Compute precision: which nodes may compute with 16-bit floats, and the pass that lets them."""
