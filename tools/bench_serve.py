"""Load time, resident memory and latency a step of one model stored in several ways, side by side in one run.

A stack of layers that all have one kind of reader is stored as FP32, by onnxruntime.quantization (dynamic INT8, and
MatMulNBits INT4 where it applies), and by this package at INT8, INT4 and INT3 under each profile. Each file is opened
in a child process of its own with stock options; latency is the median of interleaved rounds, so that a busy machine
slows all of them alike. What is printed are the ratios to FP32 of the same run.

    python tools/bench_serve.py --reader MatMul --width 2048 --layers 4 --threads 1
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from tqs_onnx.emit import emit
from tqs_onnx.rollout.session import SessionOptions, open_session, runtime_version
from tqs_passes.candidates import kitchen_of, menus
from tqs_passes.encode.weight import Form
from tqs_passes.find import find_weights
from tqs_passes.forms import Profile
from tqs_passes.model_io import Model
from tqs_passes.plan import Assignment, Plan
from tqs_passes.tier import Tier
from tqs_passes.weights import Survey

BATCHES = (1, 32, 256)
READERS = {
    "MatMul": "h{j} = MatMul(h{i}, w{i})",
    "GemmT": "h{j} = Gemm <transB = 1> (h{i}, w{i})",
    "Transpose": "t{i} = Transpose(w{i})  h{j} = MatMul(h{i}, t{i})",
    "Add": "a{i} = Add(h{i}, w{i})  h{j} = ReduceMean <axes = [0], keepdims = 0> (a{i})",
    "Conv": "u{i} = Unsqueeze(h{i}, ends)  c{i} = Conv(u{i}, w{i})  h{j} = Squeeze(c{i}, ends)",
    "Einsum": 'h{j} = Einsum <equation = "bi,ij->bj"> (h{i}, w{i})',
}


def model_of(reader: str, width: int, layers: int) -> onnx.ModelProto:
    """Return a stack of `layers` weights of `width` squared values read by one kind of operator."""
    lines = "  ".join(READERS[reader].format(i=i, j=i + 1) for i in range(layers))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[b, {width}] x) => (float[b, {width}] y) {{ h0 = Identity(x) {lines} y = Identity(h{layers}) }}"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for i in range(layers):
        w = rng.standard_normal((width, width), np.float32) * np.float32(width**-0.5)
        if reader == "Conv":
            w = w[:, :, None, None]
        if reader == "Add":
            w = w[:, None, :]
        proto.graph.initializer.append(numpy_helper.from_array(w, f"w{i}"))
    if reader == "Conv":
        proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "ends"))
    return proto


def ours(lifted: Model, survey: Survey, tier: Tier, profile: Profile, out: Path) -> None:
    """Emit every weight at one tier: the candidate with the least error."""
    rows: list[Assignment] = []
    for menu in menus(kitchen_of(lifted, profile), survey.weights, (tier,)):
        fitting = [c.assignment for c in menu.candidates if c.assignment.form is not Form.KEEP]
        rows.append(min(fitting, key=lambda a: a.error_energy))
    plan = Plan(source_sha256="0", profile=profile, assignments=tuple(rows), n_bytes=0, source_bytes=0)
    emit(lifted, plan, out)


def theirs(source: Path, folder: Path) -> dict[str, Path]:
    """Return what onnxruntime.quantization makes of a file, as far as it can."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        print(f"onnxruntime.quantization is left out: {error}")
        return {}
    int8, int4 = folder / "ort_int8.onnx", folder / "ort_int4.onnx"
    quantize_dynamic(str(source), str(int8), per_channel=True, weight_type=QuantType.QInt8)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError as error:
        print(f"MatMulNBitsQuantizer is left out: {error}")
        return {"onnxruntime INT8 dynamic": int8}
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(int4))
    return {"onnxruntime INT8 dynamic": int8, "onnxruntime INT4 NBits": int4}


def child(path: Path, width: int, threads: int) -> None:
    """Load a file, report, then answer each line on stdin, a batch size, with the seconds of one call."""
    before = _resident_mb()
    start = time.perf_counter()
    session = open_session(path, options=SessionOptions(threads=threads))
    load = time.perf_counter() - start
    feeds = {n: session.value(np.ones((n, width), np.float32)) for n in BATCHES}
    session.run({"x": feeds[1]})
    print(json.dumps({"load_s": load, "ram_mb": _resident_mb() - before}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        session.run({"x": feeds[int(line)]})
        print(time.perf_counter() - start, flush=True)


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def measure(files: dict[str, Path], width: int, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the figures of every file; rounds are interleaved."""
    found: dict[str, dict[str, float]] = {}
    children: dict[str, subprocess.Popen[str]] = {}
    for name, path in files.items():
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(path), "--width", str(width), "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            print(f"{name}: does not load")
            continue
        found[name] = {"mb": path.stat().st_size / 1e6, **json.loads(line)}
        children[name] = process
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for batch in BATCHES:
            for name, process in children.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{batch}\n")
                process.stdin.flush()
                times.setdefault((name, batch), []).append(float(process.stdout.readline()))
    for (name, batch), seconds in times.items():
        found[name][f"ms@{batch}"] = 1000 * statistics.median(seconds)
    for process in children.values():
        process.communicate()
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--reader", choices=list(READERS), default="MatMul")
    arguments.add_argument("--width", type=int, default=2048)
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        child(options.child, options.width, options.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        proto = model_of(options.reader, options.width, options.layers)
        onnx.save(proto, folder / "fp32.onnx")
        files = {"FP32": folder / "fp32.onnx", **theirs(folder / "fp32.onnx", folder)}
        lifted, survey = find_weights(Model(proto, folder))
        for profile in ("fast", "exact"):
            for tier in (Tier.INT8, Tier.INT4, Tier.INT3):
                path = folder / f"{profile}{tier}.onnx"
                ours(lifted, survey, tier, profile, path)
                files[f"tqs {tier} {profile}"] = path
        found = measure(files, options.width, options.threads, options.rounds)
    print(f"onnxruntime {runtime_version()}, {platform.processor() or platform.machine()}, {options.reader}")
    base = found["FP32"]
    print(f"{'':26} {'MB':>7} {'load s':>7} {'RAM MB':>7}" + "".join(f" {'x@' + str(b):>7}" for b in BATCHES))
    for label, row in found.items():
        ratios = "".join(f" {row[f'ms@{b}'] / base[f'ms@{b}']:7.2f}" for b in BATCHES)
        print(f"{label:26} {row['mb']:7.1f} {row['load_s']:7.2f} {row['ram_mb']:7.0f}{ratios}")


if __name__ == "__main__":
    main()
