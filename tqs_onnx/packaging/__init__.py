"""Package an emitted file for a server: Triton, TensorRT, Olive."""
