"""Runs emitted files in the interpreter's own onnxruntime; needs only NumPy and onnxruntime, of any version.

For each ``<name>.onnx`` in a folder with a ``<name>.npz`` beside it (``in/<input>``, ``out/<output>``), print one JSON
line: the file's name, and the relative error of its outputs or the reason of the failure. `check_oldest.py` calls it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def relative_error(path: Path) -> float:
    """Return the largest ‖y − y'‖ / ‖y'‖ over the stored outputs."""
    kept = np.load(path.with_suffix(".npz"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {k[3:]: kept[k] for k in kept.files if k.startswith("in/")}
    names = [k[4:] for k in kept.files if k.startswith("out/")]
    worst = 0.0
    for name, got in zip(names, session.run(names, inputs), strict=True):
        wanted = kept[f"out/{name}"].astype(np.float64)
        norm = max(float(np.linalg.norm(wanted)), 1e-30)
        worst = max(worst, float(np.linalg.norm(got.astype(np.float64) - wanted)) / norm)
    return worst


def main() -> None:
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        try:
            row = {"file": path.name, "error": relative_error(path)}
        except Exception as error:  # noqa: BLE001  (any failure of any version is the finding)
            row = {"file": path.name, "why": " ".join(str(error).split())[:160]}
        print(json.dumps({"version": onnxruntime.__version__, **row}), flush=True)


if __name__ == "__main__":
    main()
