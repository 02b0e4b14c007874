"""Measures load time, memory and latency per step of models stored in several ways, side by side in one run.

Each model is stored as FP32, by onnxruntime.quantization (dynamic INT8, and MatMulNBits INT4 if possible), and by this
package at INT8, INT4 and INT3 under every profile: every weight at that width if that saves bytes. Models: the zoo, the
bundled Lorenz-96 surrogate and the 76 MB transformer of `bench_sweep.py`; ``--model`` takes any other file, and
`measure_forms.py` has one model per kind of reader. Times are the processor time of one call on one thread, the minimum
over interleaved rounds (see `serving.py`), as multiples of FP32; memory is the increase over an empty process. Usage::

    python tools/bench_serve.py [--only transformer] [--rounds 9] [--out tools/served.md]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
from bench_sweep import transformer
from serving import measure, processor

from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.rollout.session import runtime_version
from tqs_passes.plan.forms import PROFILES
from tqs_passes.plan.targets import Serving

ROOT = Path(__file__).resolve().parents[1]
#: Largest batch of each model: the grid models hold hundreds of megabytes of activations beyond it.
MODELS = {
    "timesfm_mini": (ROOT / "models/zoo/timesfm_mini/model.onnx", 256),
    "pangu_mini": (ROOT / "models/zoo/pangu_mini/model.onnx", 32),
    "aurora_mini": (ROOT / "models/zoo/aurora_mini/model.onnx", 32),
    "lorenz96": (ROOT / "models/tqs_models/lorenz96/model.onnx", 256),
    "transformer": (None, 256),
}


def theirs(source: Path, folder: Path) -> dict[str, Path]:
    """Return the files that onnxruntime.quantization can write for a model."""
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


def ours(source: Path, folder: Path, widths: tuple[int, ...]) -> dict[str, Path]:
    """Return the file at every width under every profile."""
    opened = open_source(source)
    files: dict[str, Path] = {}
    for bits in widths:
        for profile in PROFILES:
            path = folder / f"int{bits}-{profile}.onnx"
            emit(opened.lifted, unscored_uniform_plan(opened, bits, profile, Serving()), path)
            files[f"tqs INT{bits} {profile}"] = path
    return files


def table(name: str, source: Path, most: int, options: argparse.Namespace) -> str:
    """Measure one model and return its rows."""
    batches = tuple(b for b in map(int, options.batches.split(",")) if b <= most)
    widths = tuple(map(int, options.bits.split(",")))
    with tempfile.TemporaryDirectory(prefix="tqs-serve-") as folder:
        files = {"FP32": source, **theirs(source, Path(folder)), **ours(source, Path(folder), widths)}
        found = measure(files, batches, threads=options.threads, rounds=options.rounds)
    base = found["FP32"]
    took = ", ".join(f"{base[f'ms@{b}']:.1f} ms at batch {b}" for b in batches)
    rows = [
        f"\n**{name}** (FP32: {took})\n",
        "| stored | MB | load s | memory MB | peak MB |" + "".join(f" batch {b} |" for b in batches),
        "|---|---:|---:|---:|---:|" + "---:|" * len(batches),
    ]
    for label, row in found.items():
        ratios = "".join(f" {row[f'ms@{b}'] / base[f'ms@{b}']:.2f} |" for b in batches)
        held = f"{row['mb']:.2f} | {row['load_s']:.2f} | {row['ram_mb']:.0f} | {row['peak_mb']:.0f}"
        rows.append(f"| {label} | {held} |{ratios}")
    return "\n".join(rows)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", choices=list(MODELS), help="One of the models; default all.")
    arguments.add_argument("--model", type=Path, help="Another file, at batch 1.")
    arguments.add_argument("--bits", default="8,4,3", help="Widths of this package's files.")
    arguments.add_argument("--batches", default="1,32,256")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--out", type=Path, help="Write the tables here too.")
    options = arguments.parse_args()
    text = [
        "# What the serving profiles cost on whole models",
        f"\nMade by `python tools/bench_serve.py --out tools/served.md` with onnxruntime {runtime_version()} on\n"
        f"{processor()}, {options.threads} thread: processor time, as multiples of FP32 of the same run.",
    ]
    with tempfile.TemporaryDirectory(prefix="tqs-serve-") as folder:
        chosen = {options.only: MODELS[options.only]} if options.only else dict(MODELS)
        if options.model:
            chosen = {options.model.name: (options.model, 1)}
        for name, (path, most) in chosen.items():
            if path is None:
                path = Path(folder) / "transformer.onnx"
                onnx.save(transformer(), path)
            text.append(table(name, path, most, options))
            print(text[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
