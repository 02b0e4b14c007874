"""Wrap an emitted file for those who serve it: Triton, TensorRT, Olive."""
