"""Ground floor: ONNX in, ONNX out. No runtime, no clock, no randomness, no files but load and save."""
