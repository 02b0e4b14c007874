"""Run many jobs in one process; fail if its memory or its descriptors grow.

    python tools/soak.py [--jobs 500]

The first tenth of the jobs, at least ten, warms caches up; the rest may add at most 10 % and 8 MiB of resident memory,
and no descriptor.
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

from tqs_onnx.cli.main import main
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.rollout import crash_check
from tqs_onnx.rollout.guard import resident_bytes

#: What resident memory may grow by after the warm-up.
_GROWTH, _GROWTH_BYTES = 0.1, 8 << 20


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def job(folder: Path) -> None:
    """Quantize the bundled model on few contexts over few steps, and package the file."""
    demo = demo_files()
    out = folder / "run"
    data = [
        "--rollout",
        str(demo.rollout),
        "--contexts",
        str(demo.contexts),
        "--eval-contexts",
        str(demo.evaluation),
    ]
    few = ["--max-contexts", "2", "--max-eval-contexts", "2", "--steps", "2", "--response-bits", "none"]
    run = ["--compression", "4", "--providers", "cpu", "--threads", "1", "--out", str(out), "--force"]
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = main(["quantize", str(demo.model), *data, *few, *run])
        emitted = next(out.glob("*.tqs.onnx"))
        code = code or main(
            ["package", str(emitted), "--format", "triton", "--out", str(folder / "models"), "--force"]
        )
    if code:
        raise SystemExit(f"a job ended with {code}: {said.getvalue()[-300:]}")


def soak(jobs: int) -> int:
    """Run the jobs; return the exit code."""
    crash_check.loads_in_child = lambda *_: None  # a process of its own, which cannot add to this one
    warm = max(10, jobs // 10)
    seen: list[tuple[int, int]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tqs-soak-") as name:
        for i in range(jobs):
            job(Path(name))
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
    parser = argparse.ArgumentParser(description="Run many jobs in one process.")
    parser.add_argument("--jobs", type=int, default=500)
    sys.exit(soak(parser.parse_args().jobs))
