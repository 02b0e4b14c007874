"""Models that come with tqs-onnx, and how PyTorch models become files it can read."""
