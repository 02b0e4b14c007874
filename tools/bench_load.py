"""Measures what a file costs while it loads: processor time, and memory afterwards, as multiples of FP32's.

Every file is opened with stock options on one thread, in processes of its own, in interleaved rounds. Time is the least
over the rounds. Memory is the increase of resident memory over the process before it loads, the median over the rounds;
once as the C library leaves it, and once with `MALLOC_MMAP_THRESHOLD_` fixed, so that glibc gives back at once what
folding at load has used. The last table says what a node costs: models of 128 weights of 64 × 32 values, whose
decodings differ in their number of nodes. ::

    python tools/bench_load.py [--only lorenz96] [--rounds 5] [--out tools/loads.md]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from bench_serve import MODELS, ours
from bench_sweep import transformer
from onnx import helper, numpy_helper

from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.options import SessionOptions
from tqs_onnx.rollout.session import open_session, runtime_version
from tqs_onnx.rollout.stopwatch import processor

VARIABLE, THRESHOLD = "MALLOC_MMAP_THRESHOLD_", 32768
#: Loads of one process after the first; the least counts.
LOADS = 4
N_WEIGHTS, SHAPE = 128, (64, 32)
MB = 1024


def child(path: str) -> None:
    """Load a file, and print processor seconds and the increase in resident memory."""
    options = SessionOptions(1, stock=True)
    before = _resident_mb()
    session = open_session(Path(path), options=options)
    memory = _resident_mb() - before
    del session
    seconds: list[float] = []
    for _ in range(LOADS):
        start = time.process_time()
        open_session(Path(path), options=options)
        seconds.append(time.process_time() - start)
    print(json.dumps([min(seconds), memory]))


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / MB


def measured(path: Path, *, fixed: bool) -> tuple[float, float]:
    """Return the seconds and the memory of one process."""
    environment = dict(os.environ) | ({VARIABLE: str(THRESHOLD)} if fixed else {})
    command = [sys.executable, __file__, "--child", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    seconds, memory = json.loads(made.stdout)
    return seconds, memory


def figures(files: dict[str, Path], rounds: int) -> dict[str, tuple[float, float, float, float]]:
    """Return seconds and memory of every file, as the C library leaves it and with the threshold fixed."""
    found = {(name, fixed): list[tuple[float, float]]() for name in files for fixed in (False, True)}
    for _ in range(rounds):
        for name, fixed in found:
            found[name, fixed].append(measured(files[name], fixed=fixed))
    each = {
        key: (min(s for s, _ in rows), statistics.median(m for _, m in rows)) for key, rows in found.items()
    }
    return {name: (*each[name, False], *each[name, True]) for name in files}


def chains() -> Iterator[tuple[str, int, onnx.ModelProto]]:
    """Yield models that decode their weights by ever more nodes a weight: name, nodes a weight, model."""
    rng = np.random.default_rng(0)
    for name, more in (("FP32", 0), ("INT8: Cast, Mul", 2), ("INT4: Cast, Gather, Reshape, Cast, Mul", 5)):
        stored: list[onnx.TensorProto] = []
        nodes: list[onnx.NodeProto] = []

        def keep(label: str, values: np.ndarray, into: list[onnx.TensorProto] = stored) -> str:
            into.append(numpy_helper.from_array(values, label))
            return label

        def op(kind: str, *inputs: str, into: list[onnx.NodeProto] = nodes, **attributes: int) -> str:
            into.append(helper.make_node(kind, list(inputs), [f"v{len(into)}"], **attributes))
            return str(into[-1].output[0])

        table = keep("table", rng.integers(-8, 8, (256, 2)).astype(np.int8))
        shape = keep("shape", np.array(SHAPE, np.int64))
        sums: list[str] = []
        for i in range(N_WEIGHTS):
            scale = keep(f"s{i}", np.full((1, SHAPE[1]), 0.01, np.float32))
            if more == 0:
                weight = keep(f"w{i}", rng.standard_normal(SHAPE).astype(np.float32))
            elif more == 2:
                levels = keep(f"w{i}", rng.integers(-127, 128, SHAPE).astype(np.int8))
                weight = op("Mul", op("Cast", levels, to=1), scale)
            else:
                packed = keep(f"w{i}", rng.integers(0, 256, SHAPE[0] * SHAPE[1] // 2).astype(np.uint8))
                levels = op("Reshape", op("Gather", table, op("Cast", packed, to=6)), shape)
                weight = op("Mul", op("Cast", levels, to=1), scale)
            sums.append(op("MatMul", "x", weight))
        y = op("Sum", *sums)
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", SHAPE[0]])
        out = helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["b", SHAPE[1]])
        graph = helper.make_graph(nodes, "chain", [x], [out], stored)
        yield name, more, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def table(name: str, source: Path, rounds: int) -> str:
    """Return the rows of one model."""
    with tempfile.TemporaryDirectory(prefix="tqs-load-") as folder:
        files = {"FP32": source} | ours(source, Path(folder), (8, 4, 3))
        found = figures(files, rounds)
        counts = {label: len(onnx.load(path).graph.node) for label, path in files.items()}
    base = found["FP32"]
    n_weights = len(open_source(source).survey.weights)
    lines = [
        f"\n**{name}** (FP32: {1000 * base[0]:.1f} ms, {base[1]:.1f} MB; {n_weights} weights)\n",
        f"| stored | nodes | load | memory | load, {VARIABLE} | memory, {VARIABLE} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, row in found.items():
        ratios = " | ".join(f"{mine / theirs:.2f}" for mine, theirs in zip(row, base, strict=True))
        lines.append(f"| {label} | {counts[label]} | {ratios} |")
    return "\n".join(lines)


def node_costs(rounds: int) -> str:
    """Return the table of what a node costs."""
    lines = ["\n**A node**\n", "| decoding of 128 small weights | ms | µs a node |", "|---|---:|---:|"]
    with tempfile.TemporaryDirectory(prefix="tqs-load-") as folder:
        made = [(name, more, Path(folder) / f"{more}.onnx", proto) for name, more, proto in chains()]
        for _, _, path, proto in made:
            onnx.save(proto, path)
        found = {path: min(measured(path, fixed=False)[0] for _ in range(rounds)) for _, _, path, _ in made}
    base = found[made[0][2]]
    for name, more, path, _ in made:
        each = f"{1e6 * (found[path] - base) / (more * N_WEIGHTS):.0f}" if more else ""
        lines.append(f"| {name} | {1000 * found[path]:.1f} | {each} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    arguments.add_argument("--only", help=f"Some of {', '.join(MODELS)}; default all.")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--out", type=Path, help="Write the tables here too.")
    given = arguments.parse_args()
    if given.child:
        child(given.child)
        return
    text = [
        "# What a file costs while it loads",
        f"\nMade by `python tools/bench_load.py --out tools/loads.md` with onnxruntime {runtime_version()} on\n"
        f"{processor()}: multiples of FP32's. The last two columns have `{VARIABLE}={THRESHOLD}`.",
    ]
    with tempfile.TemporaryDirectory(prefix="tqs-load-") as folder:
        for name in given.only.split(",") if given.only else MODELS:
            path = MODELS[name][0]
            if path is None:
                path = Path(folder) / "transformer.onnx"
                onnx.save(transformer(), path)
            text.append(table(name, path, given.rounds))
            print(text[-1], flush=True)
        text.append(node_costs(given.rounds))
        print(text[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
