"""Times emission, and its peak memory, against a lower bound: read, round with NumPy, and write the weights.

A model of `--mb` megabytes of float32 matrices with external data is written into a temporary folder and emitted at
`--bits` bits per channel; wall time and peak resident memory are measured in separate child processes. The lower bound
is the same rounding (`tqs_passes.grids.nearest`) and packing without ONNX, which no emitter can avoid. The plan is
built directly; its candidates are not priced.

    python tools/bench_emit.py --mb 1100 --bits 4
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tqs_onnx.emission import emit
from tqs_passes.encode.weight import Form
from tqs_passes.files.model import load_model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.grids.grid import Grid
from tqs_passes.grids.nearest import quantize
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import Tier

WIDTH = 4096


def write_model(folder: Path, n_layers: int) -> Path:
    """Write a chain of `n_layers` 4096 × 4096 matrices with external data; only one is in memory at a time."""
    rng = np.random.default_rng(0)
    nodes, tensors, value = [], [], "x"
    with (folder / "m.onnx.data").open("wb") as stream:
        for i in range(n_layers):
            w = (rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32(WIDTH**-0.5)).astype(np.float32)
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=w.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, text in (
                ("location", "m.onnx.data"),
                ("offset", str(stream.tell())),
                ("length", str(w.nbytes)),
            ):
                tensor.external_data.add(key=key, value=text)
            stream.write(w.tobytes())
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"h{i}"], name=f"mm{i}"))
            value = f"h{i}"
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", WIDTH]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx"
    )
    return folder / "m.onnx"


def floor(path: Path, bits: int) -> None:
    """Read, round and write every weight, one at a time."""
    model = load_model(path)
    with path.with_name("floor.bin").open("wb") as stream:
        for tensor in model.proto.graph.initializer:
            w = np.asarray(tensor_array(tensor, model.folder))
            codes = quantize(w, bits, 1, Grid.SIGNED)
            unsigned = codes.unsigned()
            stream.write(
                (unsigned[0::2] << 4 | unsigned[1::2]).tobytes() if bits <= 4 else unsigned.tobytes()
            )
            stream.write(codes.scales.tobytes())


def emission(path: Path, bits: int) -> None:
    """Emit every weight at `bits` bits per channel, as `tqs emit` does."""
    lifted, survey = find_weights(load_model(path))
    tier = Tier(f"INT{bits}")
    rows = tuple(
        Assignment(
            weight=w.name, label=w.label, shape=w.shape, dtype=w.dtype, tier=tier, grid=Grid.SIGNED, axis=1,
            form=Form.DEQUANTIZE, rounding="mse", n_bytes=0, error_energy=0.0,
        )
        for w in survey.weights
    )  # fmt: skip
    plan = Plan(
        source_sha256="0" * 64, profile="fast", assignments=rows, n_bytes=0, source_bytes=0, constants="small"
    )
    emit(lifted, plan, path.with_name("o.onnx"))


def measured(path: Path, job: str, bits: int) -> tuple[float, float]:
    """Return (wall seconds, peak resident megabytes) of a job in a child process, imports not timed."""
    out = subprocess.run(
        [sys.executable, __file__, "--job", job, "--path", str(path), "--bits", str(bits)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    facts = json.loads(out.stdout.splitlines()[-1])
    return facts["wall_s"], facts["peak_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=1100, help="Megabytes of float32 weights.")
    parser.add_argument("--bits", type=int, default=4, choices=range(2, 9))
    parser.add_argument("--job", choices=["floor", "emission"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        (floor if options.job == "floor" else emission)(options.path, options.bits)
        wall = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"wall_s": wall, "peak_mb": peak / 1024, "idle_mb": idle / 1024}))
        return
    each = WIDTH * WIDTH * 4
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder), max(1, options.mb * 10**6 // each))
        print(
            f"{path.with_name('m.onnx.data').stat().st_size / 1e6:.0f} MB of weights, largest {each / 1e6:.0f} MB"
        )
        base_s, base_mb = measured(path, "floor", options.bits)
        ours_s, ours_mb = measured(path, "emission", options.bits)
        size = path.with_name("o.onnx").stat().st_size
    print(f"floor     {base_s:7.1f} s  peak {base_mb:6.0f} MB")
    print(f"emission  {ours_s:7.1f} s  peak {ours_mb:6.0f} MB  {size / 1e6:.0f} MB written")
    allowed = 1.3 * each / 1e6 + 300
    print(f"ratio     {ours_s / base_s:7.2f}    peak over 1.3 x largest + 300 MB: {ours_mb / allowed:.2f}")


if __name__ == "__main__":
    main()
