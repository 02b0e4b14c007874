"""Computes the tables and figures of the paper, as data, from the files of any run: no model, no runtime."""
