"""Runs emitted files in an old onnxruntime, in a separate virtual environment.

The zoo and a model with one reader of every form are emitted at INT8, INT4 and INT3 under every profile. Each file is
rolled out for one step by the onnxruntime of this interpreter and by the old one, which needs only NumPy besides.
Differences above `MOST` (kernels of other versions round 8-bit activations differently) and files that do not load
are failures: exit code 1. The requirements of `tqs` itself are in `dependencies` in pyproject.toml. Usage::

    python tools/check_oldest.py [--version 1.21.1] [--venv FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from bench_serve import MODELS
from onnx import numpy_helper, parser
from serving import feeds_of

from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.rollout.session import SessionOptions, open_session, runtime_version
from tqs_passes.plan.forms import LEAST_VALUES, PROFILES
from tqs_passes.plan.targets import Serving

#: The oldest release whose CPU provider runs every file; docs/profiles.md states it.
OLDEST = "1.21.1"
MOST = {"exact": 1e-4, "fast": 5e-2, "small": 5e-2, "qdq": 5e-2}
EVERY_FORM = """<ir_version: 8, opset_import: ["" : 17]>
g (float[b, 64] x, int64[b, 2] idx) => (float[b, 64] y, float[b, 2, 64] z) {
  a = MatMul(x, w0)  c = Gemm(a, w1, bias)  d = Gemm<transB = 1>(c, w2, bias)
  t = Transpose(w3)  e = MatMul(d, t)  y = Add(e, w4)  z = Gather(w5, idx)
}"""


def every_form() -> onnx.ModelProto:
    """Return a model with a reader for each form."""
    proto = parser.parse_model(EVERY_FORM)
    rng = np.random.default_rng(0)
    shapes = {f"w{i}": (64, 64) for i in range(4)} | {"w4": (1, 64), "w5": (200, 64), "bias": (64,)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) / np.float32(8)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def write_files(folder: Path) -> None:
    """Emit every model at every width under every profile, with inputs and this runtime's outputs beside it."""
    own = folder / "every_form.source"
    onnx.save(every_form(), own)
    sources = {name: path for name, (path, _) in MODELS.items() if path is not None} | {"every_form": own}
    for name, path in sources.items():
        source = open_source(path)
        for bits in (8, 4, 3):
            for profile in PROFILES:
                out = folder / f"{name}-int{bits}-{profile}.onnx"
                with mock.patch.dict(LEAST_VALUES, clear=True):  # every form, however small the weight
                    plan = unscored_uniform_plan(source, bits, profile, Serving())
                emit(source.lifted, plan, out)
                session = open_session(out, options=SessionOptions(threads=1))
                feeds = feeds_of(session, 2, 100)
                kept = {f"in/{k}": v.numpy() for k, v in feeds.items()}
                kept |= {f"out/{k}": v.numpy() for k, v in session.run(feeds).items()}
                np.savez(out.with_suffix(".npz"), **kept)


def python_of(folder: Path, version: str) -> Path:
    """Return the interpreter of a virtual environment with that onnxruntime; create the environment if missing."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.is_file():
        venv.create(folder, with_pip=True)
        numpy = "numpy<2" if tuple(map(int, version.split(".")[:2])) < (1, 19) else "numpy"
        command = [str(python), "-m", "pip", "install", "-q", f"onnxruntime=={version}", numpy]
        subprocess.run(command, check=True)
    return python


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--version", action="append", help=f"Of onnxruntime; repeatable; default {OLDEST}."
    )
    arguments.add_argument("--venv", type=Path, help="Keep the environments here, one folder a version.")
    options = arguments.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tqs-oldest-") as name:
        folder = Path(name)
        write_files(folder)
        for version in options.version or [OLDEST]:
            python = python_of((options.venv or folder) / f"v{version}", version)
            runner = Path(__file__).with_name("run_emitted.py")
            done = subprocess.run([python, runner, folder], capture_output=True, text=True, check=False)
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            bad = [r for r in rows if r.get("error", np.inf) > MOST[r["file"].split("-")[-1].split(".")[0]]]
            crashed = f"; it crashed after {len(rows)}: {done.stderr[-200:]}" if done.returncode else ""
            print(
                f"onnxruntime {version}: {len(rows) - len(bad)} of {len(rows)} files as {runtime_version()}{crashed}"
            )
            for row in bad:
                print(f"  {row['file']}: {row.get('why', row.get('error'))}")
            failed += len(bad) + bool(done.returncode)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
