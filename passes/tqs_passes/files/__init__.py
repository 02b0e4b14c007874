"""Read and write ONNX files safely."""
