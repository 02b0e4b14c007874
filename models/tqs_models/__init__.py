"""Models bundled with tqs-onnx, and exporters that turn PyTorch models into ONNX files for it."""
