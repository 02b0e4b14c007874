"""Run many jobs in one process; fail if its memory or its descriptors grow.

    python tools/soak.py [--jobs 500]

A job quantizes a small model into the same run directory, and packages the file; one of twenty makes every comparison
that is made by default. The first tenth of the jobs, at least ten, warms caches up; the rest may add at most 10 % and
8 MiB of resident memory, and no descriptor.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from tqs_onnx.cli.main import main
from tqs_onnx.rollout import crash_check
from tqs_onnx.rollout.guard import resident_bytes

#: One job of so many is done with every default.
WHOLE = 20
WIDTH, HIDDEN = 32, 64
_MODEL = f"""<ir_version: 8, opset_import: ["": 17]> g (float[b, {WIDTH}] x) => (float[b, {WIDTH}] y) {{
  p = MatMul(x, W)  h = Tanh(p)  q = MatMul(h, V)  y = Add(x, q) }}"""
_ROLLOUT = """version = 1
rollout = { steps = 4, batch_axis = 0 }
feedback = [{ output = "y", input = "x", mode = "replace" }]
trajectory = { outputs = ["y"] }
"""
#: What resident memory may grow by after the warm-up.
_GROWTH, _GROWTH_BYTES = 0.1, 8 << 20


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def write_inputs(folder: Path) -> Path:
    """Write a model of two matrices, its rollout and its contexts; return the model."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(_MODEL)
    for name, shape in (("W", (WIDTH, HIDDEN)), ("V", (HIDDEN, WIDTH))):
        weight = rng.standard_normal(shape, np.float32) / np.float32(shape[0])
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(proto, folder / "m.onnx")
    (folder / "rollout.toml").write_text(_ROLLOUT)
    for name in ("contexts", "eval"):
        np.savez(folder / f"{name}.npz", x=rng.standard_normal((4, WIDTH), np.float32))
    return folder / "m.onnx"


def job(model: Path, *, whole: bool) -> None:
    """Quantize the model and package the file; `whole`: with every default, else without repair and comparisons."""
    folder = model.parent
    out = folder / "run"
    data = ["--rollout", "rollout.toml", "--contexts", "contexts.npz", "--eval-contexts", "eval.npz"]
    data = [word if word.startswith("--") else str(folder / word) for word in data]
    less = (
        []
        if whole
        else ["--rounding", "gptq", "--candidates", "1", "--repair", "0", "--response-bits", "none"]
    )
    run = ["--compression", "2", "--providers", "cpu", "--threads", "1", "--out", str(out), "--force"]
    package = ["--format", "triton", "--out", str(folder / "models"), "--force"]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = main(["quantize", str(model), *data, *less, *run])
        code = code or main(["package", str(next(out.glob("*.tqs.onnx"))), *package])
    if code:
        raise SystemExit(f"a job ended with {code}: {said.getvalue()[-300:]}")


def soak(jobs: int) -> int:
    """Run the jobs; return the exit code."""
    crash_check.loads_in_child = lambda *_: None  # a process of its own, which cannot add to this one
    warm = max(10, jobs // 10)
    seen: list[tuple[int, int]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tqs-soak-") as name:
        model = write_inputs(Path(name))
        for i in range(jobs):
            job(model, whole=i % WHOLE == 0)
            seen.append((resident_bytes(), descriptors()))
            if (i + 1) % max(1, jobs // 10) == 0:
                print(f"{i + 1} jobs: {seen[-1][0] >> 20} MiB, {seen[-1][1]} descriptors", flush=True)
    memory = np.array([s[0] for s in seen[warm:]])
    grown = int(np.median(memory[-warm:])) - int(np.median(memory[:warm]))
    limit = int(_GROWTH * memory[0]) + _GROWTH_BYTES
    more = seen[-1][1] - seen[warm][1]
    taken_s = time.perf_counter() - start
    print(
        f"after {warm} jobs of warm-up: {grown / 2**20:+.1f} MiB (at most {limit / 2**20:.1f}), "
        f"{more:+d} descriptors; {taken_s:.0f} s, process {os.getpid()}"
    )
    return int(grown > limit or more > 0)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Run many jobs in one process.")
    options.add_argument("--jobs", type=int, default=500)
    sys.exit(soak(options.parse_args().jobs))
