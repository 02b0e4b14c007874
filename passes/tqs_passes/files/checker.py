"""Check a model with ONNX's own full checker."""

from __future__ import annotations

from pathlib import Path

import onnx


def checker_complaint(model: onnx.ModelProto | Path) -> str | None:
    """Return the first error of the full ONNX checker, or None; pass the path of a model with external data."""
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,  # unknown data type
        RuntimeError,
    ) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None
