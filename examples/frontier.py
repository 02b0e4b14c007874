"""Trace the frontier of accuracy and size, beside uniform rounding at equal file bytes.

Scores the demo model once, rounds it uniformly to 8, 4 and 3 bits, and writes a mixed-precision file at the bytes of
each of these files. Prints one line a width: the bytes of both files and their drifts. Few steps and contexts: the
ratios are an illustration, not a result.
"""

import tempfile
from pathlib import Path

import tqs_onnx as tqs

STEPS, CONTEXTS, EVALUATION = 6, 4, 8
WIDTHS = (8, 4, 3)
RUN = tqs.RunOptions(provider="cpu", threads=1)

files = tqs.demo_files()
data = tqs.load_data(
    files.model,
    files.rollout,
    files.contexts,
    files.evaluation,
    steps=STEPS,
    max_contexts=CONTEXTS,
    max_eval_contexts=EVALUATION,
)
scores = tqs.score(files.model, data, run=RUN)

with tempfile.TemporaryDirectory() as folder:
    uniform = [
        tqs.baseline(
            files.model, data, tqs.BaselineOptions(bits=bits, run=RUN), Path(folder) / f"W{bits}"
        ).verification
        for bits in WIDTHS
    ]
    options = tqs.QuantizeOptions(run=RUN)
    targets = [v.compression for v in uniform]
    pareto = tqs.sweep(files.model, scores, data, targets, Path(folder) / "frontier", options)

for bits, v, point in zip(WIDTHS, uniform, pareto.points, strict=True):
    print(
        f"W{bits}: uniform {v.bytes_out:,} bytes, drift {v.drift.total:.4f};"
        f" mixed {point.n_bytes:,} bytes, drift {point.drift_measured:.4f}"
    )
