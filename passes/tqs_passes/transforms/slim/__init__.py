"""Passes that make the graph itself smaller, losslessly: every output stays the same, bit for bit."""
