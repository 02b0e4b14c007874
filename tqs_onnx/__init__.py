"""Measure, decide, report: sensitivity of ONNX forecasting models over their rollout, and what to do with it."""
