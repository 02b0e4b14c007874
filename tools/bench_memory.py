"""Measures the peak memory of `tqs score` on a big model with external data, as a multiple of its weights.

A chain of 4096 × 4096 matrices of `--mb` megabytes is scored in a child process. The memory of a process that only
imports the package is reported too. Allowed: the model once, and half of it again while a weight is perturbed.

    python tools/bench_memory.py --mb 1100
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_emit import WIDTH, write_model

SPEC = """version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = "{output}"
input = "x"
mode = "replace"
[trajectory]
outputs = ["{output}"]
"""


def peak_of(command: list[str]) -> tuple[float, float]:
    """Run a command to its end; return its wall seconds and peak resident bytes."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=1100, help="Megabytes of float32 weights.")
    parser.add_argument("--contexts", type=int, default=4)
    given = parser.parse_args()
    _, empty = peak_of([sys.executable, "-c", "import tqs_onnx.cli.score"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_layers = max(1, given.mb * 10**6 // (4 * WIDTH * WIDTH))
        model = write_model(folder, n_layers)
        (folder / "rollout.toml").write_text(SPEC.format(output=f"h{n_layers - 1}"), encoding="utf-8")
        state = np.random.default_rng(0).standard_normal((given.contexts, WIDTH)).astype(np.float32)
        np.savez(folder / "contexts.npz", x=state)
        weights = (folder / "m.onnx.data").stat().st_size
        wall_s, peak = peak_of(
            [
                *(sys.executable, "-m", "tqs_onnx.cli.main", "score", str(model)),
                *("--rollout", str(folder / "rollout.toml"), "--contexts", str(folder / "contexts.npz")),
                *("--out", str(folder / "run"), "--json"),
            ]
        )
    print(
        f"{weights / 1e6:.0f} MB in {n_layers} matrices, scored in {wall_s:.0f} s: peak {peak / 1e6:.0f} MB, "
        f"{peak / weights:.2f} times the weights ({(peak - empty) / weights:.2f} beyond the {empty / 1e6:.0f} MB of an "
        "empty process)"
    )


if __name__ == "__main__":
    main()
