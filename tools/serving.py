"""Loads a model in a separate process and times it; used by `measure_forms.py` and `bench_serve.py`.

A child process loads one file with stock options and one thread, reports the cost of loading, and then answers each
batch size on its standard input with the processor time of one call. Files are compared in interleaved rounds, and
processor time is not affected by other load. Resident memory is measured after the first call at every batch size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tqs_onnx.rollout.session import Session, SessionOptions, Value, open_session

#: A dimension that a model leaves open is a batch when it comes first, else of this length.
OPEN = 1


def feeds_of(session: Session, batch: int, most_index: int) -> dict[str, Value]:
    """Return random inputs for a batch size; every named dimension is the batch."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Value] = {}
    for port in session.signature.inputs:
        shape = [d if isinstance(d, int) else batch for d in port.shape or ()]
        if port.dtype.kind in "iu":
            values = rng.integers(0, most_index, shape).astype(port.dtype)
        else:
            values = rng.standard_normal(shape).astype(port.dtype)
        feeds[port.name] = session.value(values)
    return feeds


def child(path: Path, batches: tuple[int, ...], threads: int, most_index: int) -> None:
    """Load a file, report, then answer each line on stdin, a batch size, with the processor seconds of one call."""
    before = _status("VmRSS")
    start = time.process_time()
    session = open_session(path, options=SessionOptions(threads=threads))
    load = time.process_time() - start
    feeds = {n: feeds_of(session, n, most_index) for n in batches}
    first = _status("VmRSS") - before
    for n in batches:
        session.run(feeds[n])
    report = {
        "load_s": load,
        "loaded_mb": first,
        "ram_mb": _status("VmRSS") - before,
        "peak_mb": _status("VmHWM") - before,
    }
    print(json.dumps(report), flush=True)
    for line in sys.stdin:
        n = int(line)
        start = time.process_time()
        session.run(feeds[n])
        print(time.process_time() - start, flush=True)


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measure(
    files: dict[str, Path],
    batches: tuple[int, ...],
    *,
    threads: int = 1,
    rounds: int = 7,
    most_index: int = 1,
) -> dict[str, dict[str, float]]:
    """Return the figures of every file that loads: ``mb``, ``load_s``, ``ram_mb``, ``peak_mb`` and ``ms@<batch>``.

    Latency is the minimum over interleaved rounds.
    """
    found: dict[str, dict[str, float]] = {}
    children: dict[str, subprocess.Popen[str]] = {}
    for name, path in files.items():
        words = [str(path), ",".join(map(str, batches)), str(threads), str(most_index)]
        process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = _readline(process)
        if not line:
            print(f"{name}: does not load or run", file=sys.stderr)
            continue
        size = sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*"))
        found[name] = {"mb": size / 1e6, **json.loads(line)}
        children[name] = process
    for _ in range(rounds):
        for batch in batches:
            for name, process in children.items():
                assert process.stdin is not None
                process.stdin.write(f"{batch}\n")
                process.stdin.flush()
                took = 1000 * float(_readline(process))
                key = f"ms@{batch}"
                found[name][key] = min(took, found[name].get(key, took))
    for process in children.values():
        process.communicate()
    return found


def _readline(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def processor() -> str:
    """Return the name of the CPU and the instruction sets that affect these figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return f"{name} ({', '.join(f for f in ('avx2', 'avx512f', 'avx512_vnni', 'amx_int8') if f in flags)})"


if __name__ == "__main__":
    child(
        Path(sys.argv[1]), tuple(int(n) for n in sys.argv[2].split(",")), int(sys.argv[3]), int(sys.argv[4])
    )
