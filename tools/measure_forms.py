"""Measures the cost of every form for every kind of reader: the data behind `tqs_passes.plan.forms.TABLE`.

For each kind of reader a small model is stored as FP32 and in every applicable form, each at several tiers. Printed per
form: processor time of a call as a multiple of FP32's at batch 1 and 32, the error against the model with the decoded
weights, file size, resident memory and its peak against FP32's. `--out` writes the table as Markdown, with the version
of the runtime and the CPU; figures of kinds that are not measured again are kept from `--json`. Usage::

    python tools/measure_forms.py --json tools/forms.json --out tools/forms.md [--only MatMul,Conv3x3] [--rounds 7]
    python tools/measure_forms.py --provider cuda --json tools/forms_cuda.json --out tools/forms_cuda.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser
from serving import feeds_of, measure, processor

from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.gpu import card_names
from tqs_onnx.rollout.options import Provider
from tqs_onnx.rollout.session import SessionOptions, open_session, runtime_version
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Grid
from tqs_passes.grids.nearest import quantize
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.tier import Tier

BATCHES = (1, 32)


@dataclass(frozen=True)
class Kind:
    """A kind of reader: the model's input, one layer of it from {h} to {j}, the weight's shape, how many layers."""

    x: str
    layer: str
    shape: tuple[int, ...]
    layers: int = 3


_PLAIN, _IMAGE = "float[b, 1024] x", "float[b, 128, 14, 14] x"
KINDS = {
    "MatMul": Kind(_PLAIN, "{j} = MatMul({h}, {w})", (1024, 1024)),
    "Gemm": Kind(_PLAIN, "{j} = Gemm({h}, {w}, bias)", (1024, 1024)),
    "Gemm transB": Kind(_PLAIN, "{j} = Gemm<transB = 1>({h}, {w}, bias)", (1024, 1024)),
    "Transpose, MatMul": Kind(_PLAIN, "t{j} = Transpose({w})  {j} = MatMul({h}, t{j})", (1024, 1024)),
    "Conv 3x3": Kind(_IMAGE, "{j} = Conv<pads = [1, 1, 1, 1]>({h}, {w})", (128, 128, 3, 3)),
    "Conv 1x1": Kind(_IMAGE, "{j} = Conv({h}, {w})", (128, 128, 1, 1), 8),
    "Conv depthwise": Kind(_IMAGE, "{j} = Conv<group = 128, pads = [1, 1, 1, 1]>({h}, {w})", (128, 1, 3, 3), 8),
    "Gather": Kind("int64[b, 64] x", "{j} = Gather({w}, {h})", (16384, 256), 1),
    "Add": Kind("float[b, 64, 1024] x", "{j} = Add({h}, {w})", (64, 1024), 8),
    "LSTM": Kind(
        "float[16, b, 256] x", "l{j} = LSTM<hidden_size = 256>({h}, {w}, {w}r)  {j} = Squeeze(l{j}, one)",
        (1, 1024, 256),
    ),
    "Einsum": Kind(_PLAIN, '{j} = Einsum<equation = "bi,ij->bj">({h}, {w})', (1024, 1024)),
    "left MatMul": Kind("float[1024, b] x", "{j} = MatMul({w}, {h})", (1024, 1024)),
    "batched MatMul": Kind("float[8, b, 256] x", "{j} = MatMul({h}, {w})", (8, 256, 256)),
}  # fmt: skip
TIERS = (Tier.INT8, Tier.INT4, Tier.INT3)


def model_of(kind: Kind) -> onnx.ModelProto:
    """Return the model of a kind of reader, with random weights that keep values of order one."""
    names = ["x", *(f"h{i}" for i in range(1, kind.layers)), "y"]
    lines = "  ".join(kind.layer.format(h=names[i], j=names[i + 1], w=f"w{i}") for i in range(kind.layers))
    rank = kind.x.count(",") + (2 if "Gather" in kind.layer else 1)
    out = f"float[{', '.join(f'd{i}' for i in range(rank))}] y"
    proto = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({kind.x}) => ({out}) {{ {lines} }}'
    )
    rng = np.random.default_rng(0)
    for i in range(kind.layers):
        fan = (
            np.prod(kind.shape[1:]) if "Conv" in kind.layer else kind.shape[-2] if len(kind.shape) > 1 else 1
        )
        for name in (f"w{i}", f"w{i}r") if "LSTM" in kind.layer else (f"w{i}",):
            w = rng.standard_normal(kind.shape, np.float32) * np.float32(float(fan) ** -0.5)
            proto.graph.initializer.append(numpy_helper.from_array(w, name))
    if "bias" in kind.layer:
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(1024, np.float32), "bias"))
    if "one" in kind.layer:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return proto


def stored(source: Source, tier: Tier, form: Form, encoding: Encoding, out: Path) -> Plan:
    """Emit every matrix of a source at one tier in one form, and return the plan."""
    rows: list[Assignment] = []
    for w in source.survey.weights:
        common = {"weight": w.name, "label": w.label, "shape": w.shape, "dtype": w.dtype}
        if len(w.shape) < 2:
            kept = Assignment(
                tier=Tier.FP32, form=Form.KEEP, rounding="keep", n_bytes=0, error_energy=0, **common
            )
            rows.append(kept)
            continue
        rows.append(
            Assignment(
                tier=tier, grid=Grid.SIGNED, axis=w.channel_axis, form=form, encoding=encoding, rounding="mse",
                n_bytes=0, error_energy=0, **common,
            )
        )  # fmt: skip
    plan = Plan(
        source_sha256=source.sha256, profile="exact", assignments=tuple(rows), n_bytes=0, source_bytes=0
    )
    emit(source.lifted, plan, out)
    return plan


def block_quantized(source: Source, out: Path) -> None:
    """Write a table read by Gather for the runtime's own GatherBlockQuantized, 4 bits."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.lifted.proto)
    w = numpy_helper.to_array(proto.graph.initializer[0])
    codes = quantize(w, 4, 0, Grid.SIGNED)
    pairs = (codes.levels.astype(np.int16) + 8).astype(np.uint8).reshape(w.shape[0], -1, 2)
    block = 128
    del proto.graph.initializer[:]
    proto.graph.initializer.append(numpy_helper.from_array(pairs[..., 0] | pairs[..., 1] << 4, "w0"))
    scales = np.repeat(codes.scales.reshape(-1, 1), w.shape[1] // block, axis=1)
    proto.graph.initializer.append(numpy_helper.from_array(scales, "s"))
    node = helper.make_node(
        "GatherBlockQuantized", ["w0", "x", "s"], ["y"], domain="com.microsoft", bits=4, block_size=block,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    del proto.graph.node[:]
    proto.graph.node.append(node)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, out)


def error_of(path: Path, source: Source, plan: Plan, provider: Provider) -> float:
    """Return ‖y − y'‖ / ‖y'‖ at batch 3; y' is the source's output with the plan's decoded weights."""
    fed = onnx.ModelProto()
    fed.CopyFrom(source.lifted.proto)
    by_name = {a.weight: a for a in plan.assignments}
    for tensor in fed.graph.initializer:
        if tensor.name in by_name:
            values = reference_weight(by_name[tensor.name], numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    outputs = []
    for model in (fed.SerializeToString(), path):
        session = open_session(model, provider=provider, options=SessionOptions(threads=1))
        outputs.append(session.run(feeds_of(session, 3, 1000))["y"].numpy().astype(np.float64))
    return float(np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0]))


def measured(
    name: str, rounds: int, provider: Provider = "cpu", tiers: tuple[Tier, ...] = TIERS
) -> list[dict[str, object]]:
    """Return a row for every form that a kind of reader can take."""
    with tempfile.TemporaryDirectory(prefix="tqs-forms-") as folder:
        path = Path(folder) / "fp32.onnx"
        onnx.save(model_of(KINDS[name]), path)
        source = open_source(path)
        files, errors = {"FP32": path}, {"FP32": 0.0}
        for tier in tiers:
            for form in (Form.CAST_MUL, Form.DEQUANTIZE, Form.NBITS, Form.GATHERED):
                for encoding in Encoding:
                    label = f"{tier} {form.value}{' native' if encoding is Encoding.NATIVE else ''}"
                    out = Path(folder) / f"{label.replace(' ', '-')}.onnx"
                    if encoding is Encoding.NATIVE and (form is not Form.DEQUANTIZE or tier is Tier.INT3):
                        continue
                    if form is Form.NBITS and not name.startswith(("MatMul", "Gemm")):
                        continue
                    if form is Form.GATHERED and name != "Gather":
                        continue
                    plan = stored(source, tier, form, encoding, out)
                    files[label] = out
                    try:
                        errors[label] = error_of(out, source, plan, provider)
                    except InputError as error:
                        print(f"{name}, {label}: {error}", file=sys.stderr)
        if name == "Gather":
            files["INT4 GatherBlockQuantized"] = Path(folder) / "gbq.onnx"
            block_quantized(source, files["INT4 GatherBlockQuantized"])
        found = measure(files, BATCHES, rounds=rounds, most_index=1000, provider=provider)
    base = found["FP32"]
    rows: list[dict[str, object]] = []
    for label, row in found.items():
        ratios = {f"x@{b}": round(row[f"ms@{b}"] / base[f"ms@{b}"], 2) for b in BATCHES}
        memory = {k: round(row[k] / base[k], 2) for k in ("ram_mb", "peak_mb")}
        rows.append(
            {
                "form": label,
                **ratios,
                "error": errors.get(label),
                "file": round(row["mb"] / base["mb"], 3),
                **memory,
            }
        )
    return rows


def markdown(document: dict[str, dict[str, object]]) -> str:
    """Return the measurements as a table."""
    lines = [
        "# What every form costs, by kind of reader",
        "",
        "Made by `python tools/measure_forms.py`. Time of one call as a multiple of FP32 (least of interleaved rounds;",
        "of one thread of the processor on the CPU, of the wall clock on a GPU), error against the model fed the",
        "decoded weights, bytes of the file, resident memory and its peak as multiples of FP32's.",
        "",
        "| reader | form | batch 1 | batch 32 | error | file | memory | peak | measured with |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, entry in document.items():
        rows = entry["rows"]
        assert isinstance(rows, list)
        for row in rows:
            error = "" if row["error"] is None else f"{row['error']:.1e}"
            where = entry["where"] if row["form"] == "FP32" else ""
            lines.append(
                f"| {name} | {row['form']} | {row['x@1']:.2f} | {row['x@32']:.2f} | {error} | {row['file']:.3f} "
                f"| {row['ram_mb']:.2f} | {row['peak_mb']:.2f} | {where} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", default="", help="Kinds to measure, separated by commas; default all.")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--provider", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument(
        "--json", type=Path, help="Keep the figures here, and take those of other kinds from here."
    )
    arguments.add_argument("--out", type=Path, help="Write the Markdown here; default: print it.")
    options = arguments.parse_args()
    kept = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    names = [n for n in KINDS if n in options.only.split(",")] if options.only else list(KINDS)
    chip = processor() if options.provider == "cpu" else card_names()
    where = f"onnxruntime {runtime_version()}, {chip}"
    for name in names:
        kept[name] = {"where": where, "rows": measured(name, options.rounds, options.provider)}
        if options.json:
            options.json.write_text(json.dumps({k: kept[k] for k in KINDS if k in kept}, indent=1) + "\n")
    text = markdown({k: kept[k] for k in KINDS if k in kept})
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
