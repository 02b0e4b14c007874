"""Runs emitted files in the interpreter's own runtime; needs only NumPy and that runtime, of any version.

For each ``<name>.onnx`` in a folder with a ``<name>.npz`` beside it (``in/<input>``, ``out/<output>``), print one JSON
line: the file's name, and the relative error of its outputs or the reason of the failure. `check_oldest.py` and
`other_runtimes.py` call it ::

    python run_emitted.py FOLDER [onnxruntime | openvino | openvino-exact | reference]

`openvino-exact` sets DYNAMIC_QUANTIZATION_GROUP_SIZE to 0, without which OpenVINO rounds the inputs of matrices that
are stored as integers; `reference` is the evaluator of the package onnx.
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Inputs = dict[str, "np.ndarray[Any, Any]"]


def in_onnxruntime(path: Path, inputs: Inputs, names: list[str]) -> list[Any]:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, inputs))


def in_openvino(path: Path, inputs: Inputs, names: list[str], *, exact: bool = False) -> list[Any]:
    core = importlib.import_module("openvino").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if exact else {}
    made = core.compile_model(core.read_model(str(path)), "CPU", settings)(inputs)
    return [made[name] for name in names]


def in_reference(path: Path, inputs: Inputs, names: list[str]) -> list[Any]:
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(str(path))
    return list(evaluator.run(names, inputs))


RUNTIMES: dict[str, Callable[[Path, Inputs, list[str]], list[Any]]] = {
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
    "openvino-exact": lambda path, inputs, names: in_openvino(path, inputs, names, exact=True),
    "reference": in_reference,
}


def version_of(runtime: str) -> str:
    """Return the version of the package that a runtime is."""
    package = {"reference": "onnx"}.get(runtime, runtime.partition("-")[0])
    return str(importlib.import_module(package).__version__)


def relative_error(path: Path, runtime: str = "onnxruntime") -> float:
    """Return the largest ‖y − y'‖ / ‖y'‖ over the stored outputs."""
    kept = np.load(path.with_suffix(".npz"))
    inputs = {k[3:]: kept[k] for k in kept.files if k.startswith("in/")}
    names = [k[4:] for k in kept.files if k.startswith("out/")]
    worst = 0.0
    for name, got in zip(names, RUNTIMES[runtime](path, inputs, names), strict=True):
        wanted = kept[f"out/{name}"].astype(np.float64)
        norm = max(float(np.linalg.norm(wanted)), 1e-30)
        worst = max(worst, float(np.linalg.norm(np.asarray(got, np.float64) - wanted)) / norm)
    return worst


def main() -> None:
    runtime = sys.argv[2] if len(sys.argv) > 2 else "onnxruntime"
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        try:
            row: dict[str, Any] = {"file": path.name, "error": relative_error(path, runtime)}
        except Exception as error:  # noqa: BLE001  (any failure of any version is the finding)
            row = {"file": path.name, "why": " ".join(str(error).split())[:160] or type(error).__name__}
        print(json.dumps({"version": version_of(runtime), **row}), flush=True)


if __name__ == "__main__":
    main()
