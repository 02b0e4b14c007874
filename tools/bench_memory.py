"""Measures the peak memory of `tqs score`: against the number of steps, and on a big model with external data.

Two tables, each row a child process of its own:

- a model with little weights and a big state (8.4 MB a context and step) at more and more steps, with and without
  `--max-memory`: with it, peak memory does not grow with the steps, because the nominal rollout lies in a file;
- a chain of 4096 x 4096 matrices of `--mb` megabytes at `--steps` steps, beside the estimate of `--dry-run`.

    python tools/bench_memory.py --state-steps 10,40,160 --mb 1100 --steps 40
    python tools/bench_memory.py --state-steps none --mb 1100 --steps 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from bench_emit import WIDTH, write_model
from onnx import numpy_helper, parser

SPEC = """version = 1
[rollout]
steps = {steps}
batch_axis = 0
[[feedback]]
output = "{output}"
input = "x"
mode = "replace"
[trajectory]
outputs = ["{output}"]
"""
#: Height and width of the big state, of 8 channels.
SIDE = 512


def peak_of(command: list[str]) -> tuple[float, float, str]:
    """Run a command to its end; return its wall seconds, peak resident bytes, and what it printed."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, printed


def state_model(path: Path) -> None:
    """Write x' = tanh(conv(x)) on a big grid: two small weights."""
    graph = f"""(float[b, 8, {SIDE}, {SIDE}] x) => (float[b, 8, {SIDE}, {SIDE}] y)
      {{ p = Conv(x, w, c)  y = Tanh(p) }}"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((8, 8, 1, 1)) / 8**0.5).astype(np.float32)
    proto.graph.initializer.extend(
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.zeros(8, np.float32), "c")]
    )
    onnx.save(proto, path)


def scored(
    folder: Path, model: Path, output: str, state: np.ndarray, steps: int, *more: str
) -> tuple[float, float, float]:
    """Score a model in a child process; return wall seconds, peak bytes, and the bytes that `--dry-run` estimates."""
    (folder / "rollout.toml").write_text(SPEC.format(output=output, steps=steps), encoding="utf-8")
    np.savez(folder / "contexts.npz", x=state)
    command = [
        *(
            sys.executable,
            "-m",
            "tqs_onnx.cli.main",
            "score",
            str(model),
            "--providers",
            "cpu",
            "--threads",
            "1",
        ),
        *("--rollout", str(folder / "rollout.toml"), "--contexts", str(folder / "contexts.npz")),
        *("--response-bits", "none", "--out", str(folder / "run"), "--force", "--json", *more),
    ]
    _, _, told = peak_of([*command, "--dry-run"])
    (folder / "run" / "sweep.sqlite").unlink(missing_ok=True)
    wall_s, peak, _ = peak_of(command)
    return wall_s, peak, float(json.loads(told)["probes"][0]["memory_bytes"])


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--state-steps", default="10,40,160", help="Steps of the first table, or none.")
    arguments.add_argument(
        "--max-memory", type=int, default=150, help="Megabytes allowed in the first table."
    )
    arguments.add_argument(
        "--mb", type=int, default=1100, help="Megabytes of float32 weights; 0: no second table."
    )
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--contexts", type=int, default=4)
    given = arguments.parse_args()
    _, empty, _ = peak_of([sys.executable, "-c", "import tqs_onnx.cli.score"])
    print(f"An empty process takes {empty / 1e6:.0f} MB.\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.state_steps != "none":
            state_model(folder / "state.onnx")
            state = np.random.default_rng(0).standard_normal((2, 8, SIDE, SIDE)).astype(np.float32)
            print(
                "| steps | nominal rollout MB | peak MB | estimate MB | peak MB bounded | estimate MB bounded |"
            )
            print("|---:|---:|---:|---:|---:|---:|")
            for steps in map(int, given.state_steps.split(",")):
                _, free, free_told = scored(folder, folder / "state.onnx", "y", state, steps)
                bound = ("--max-memory", str(given.max_memory))
                _, least, told = scored(folder, folder / "state.onnx", "y", state, steps, *bound)
                print(
                    f"| {steps} | {steps * state.nbytes / 1e6:.0f} | {free / 1e6:.0f} | {free_told / 1e6:.0f} "
                    f"| {least / 1e6:.0f} | {told / 1e6:.0f} |",
                    flush=True,
                )
        if given.mb:
            n_layers = max(1, given.mb * 10**6 // (4 * WIDTH * WIDTH))
            model = write_model(folder, n_layers)
            state = np.random.default_rng(0).standard_normal((given.contexts, WIDTH)).astype(np.float32)
            weights = (folder / "m.onnx.data").stat().st_size
            wall_s, peak, told = scored(folder, model, f"h{n_layers - 1}", state, given.steps)
            print(
                f"\n{weights / 1e6:.0f} MB in {n_layers} matrices, {given.steps} steps, scored in {wall_s:.0f} s: peak "
                f"{peak / 1e6:.0f} MB, {(peak - empty) / 1e6:.0f} MB beyond an empty process; --dry-run estimates "
                f"{told / 1e6:.0f} MB; {peak / weights:.2f} times the weights"
            )


if __name__ == "__main__":
    main()
