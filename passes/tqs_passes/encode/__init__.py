"""How a tier is stored in ONNX and decoded by standard operators."""
