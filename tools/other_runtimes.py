"""Runs emitted files of every profile in other runtimes, and through the simplifiers; prints a table.

Models: the demo, an LSTM of the zoo, and a model with one reader of every form; each at INT8 and INT4 under every
profile, and with rounded inputs (`dynamic`, and `qdq` with fixed ranges). The error of a file is that of its outputs
against FP32's graph fed the weights that the file decodes to, at batch 2 on random inputs: what a runtime adds. Cells
hold the largest over the models, or how many files fail. For simplifiers: bytes of all files after over before,
and the error of the simplified files in onnxruntime. Runtimes are separate programs; what is not given is left out ::

    python -m venv other && other/bin/pip install openvino onnx onnxsim onnxslim
    npm install --prefix web onnxruntime-web
    python tools/other_runtimes.py --python other/bin/python --node-modules web/node_modules --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from bench_serve import MODELS
from check_oldest import every_form
from onnx import numpy_helper
from serving import feeds_of, processor

from tqs_onnx.allocation.bare_plan import bare_plan
from tqs_onnx.allocation.request import menus_of, prepared_source, settled_serving, size_of
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.rollout.session import Session, SessionOptions, Value, open_session
from tqs_passes.encode.static import Range, range_between
from tqs_passes.encode.weight import ROUNDED, Form
from tqs_passes.files.model import serialize
from tqs_passes.files.tensors import tensor_array
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.candidates import with_ranges
from tqs_passes.plan.forms import LEAST_VALUES, PROFILES, Profile
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier
from tqs_passes.transforms.capture import Capture, captured_names

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent / "models/zoo"
PYTHON_RUNTIMES = ("onnxruntime", "openvino", "openvino-exact", "reference")
_EACH = """
import sys
from pathlib import Path
import onnx
{imports}
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    try:
        onnx.save({call}, Path(sys.argv[2]) / path.name)
    except Exception as error:
        print(path.name, type(error).__name__, file=sys.stderr)
"""
SIMPLIFIERS = {
    "onnxslim": _EACH.format(imports="import onnxslim", call="onnxslim.slim(onnx.load(path))"),
    "onnxsim": _EACH.format(imports="import onnxsim", call="onnxsim.simplify(onnx.load(path))[0]"),
}


def plans(source: Source) -> Iterator[tuple[str, Plan]]:
    """Yield the name of a form and a plan for it."""
    for profile in PROFILES:
        for bits in (8, 4):
            with mock.patch.dict(LEAST_VALUES, clear=True):  # every form, however small the weight
                yield f"{profile} INT{bits}", unscored_uniform_plan(source, bits, profile, Serving())
    yield "fast INT4, as served", unscored_uniform_plan(source, 4, "fast", Serving())
    yield "exact INT4, standard ops", unscored_uniform_plan(source, 4, "exact", Serving(standard_ops=True))
    yield "exact, dynamic", rounded_plan(source, "exact")
    yield "qdq, static", rounded_plan(source, "qdq")


def rounded_plan(source: Source, profile: Profile) -> Plan:
    """Return the plan in which every reader that can rounds its input; ranges are those of one random call."""
    serving = settled_serving(source, Serving().under(profile))
    ready = prepared_source(source, serving)
    menus = menus_of(source, ready, profile, (Tier.INT8,), serving, rounded=True)
    if profile == "qdq":
        known = ranges_of_one_call(source, [m.weight.name for m in menus])
        menus = tuple(with_ranges(m, known.get(m.weight.name, ())) for m in menus)
    chosen = []
    for menu in menus:
        offer = [c for c in menu.candidates if c.assignment.form in ROUNDED] or list(menu.candidates)
        chosen.append(min(offer, key=lambda c: (c.assignment.axis is None, c.assignment.error_energy)))
    return bare_plan(source, chosen, size_of(source, ready), profile, serving)


def ranges_of_one_call(source: Source, weights: Sequence[str]) -> dict[str, tuple[Range, ...]]:
    """Return the ranges of the inputs of MatMul, Gemm and Conv, and of the outputs of Conv, by weight."""
    nodes = {n.input[1]: n for n in source.lifted.proto.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")}
    touched = {
        w: [nodes[w].input[0], *([nodes[w].output[0]] if nodes[w].op_type == "Conv" else [])]
        for w in weights
        if w in nodes
    }
    tensors = tuple(dict.fromkeys(t for names in touched.values() for t in names))
    outputs = captured_names(source.lifted, tensors)
    session = open_session(serialize(Capture(tensors).apply(source.lifted).model.proto))
    made = session.run(inputs_of(session))
    found = {t: made[outputs[t]].numpy() for t in tensors}
    ranges = {t: range_between(float(x.min()), float(x.max()), "uint8") for t, x in found.items()}
    return {w: tuple(ranges[t] for t in names) for w, names in touched.items()}


def inputs_of(session: Session) -> dict[str, Value]:
    return feeds_of(session, 2, 100)


def reference(source: Source, plan: Plan) -> dict[str, np.ndarray]:
    """Return inputs and outputs of FP32's graph with the weights that a plan's file decodes to."""
    proto = onnx.ModelProto()
    proto.CopyFrom(source.lifted.proto)
    stored = {t.name: t for t in proto.graph.initializer}
    for a in plan.assignments:
        if a.form is not Form.KEEP:
            values = tensor_array(stored[a.weight], source.lifted.folder)
            stored[a.weight].CopyFrom(numpy_helper.from_array(np.asarray(fed_weight(a, values)), a.weight))
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=1))
    feeds = inputs_of(session)
    kept = {f"in/{k}": v.numpy() for k, v in feeds.items()}
    return kept | {f"out/{k}": v.numpy() for k, v in session.run(feeds).items()}


def write_files(folder: Path) -> None:
    """Emit every file, with its inputs and what they should give beside it, as .npz and as .json."""
    own = folder / "every_form.source"
    onnx.save(every_form(), own)
    sources = {"demo": MODELS["lorenz96"][0], "every_form": own}
    sources |= {name: ZOO / name / "model.onnx" for name in ("lstm_ett",)}
    for name, path in sources.items():
        source = open_source(path)
        for label, plan in plans(source):
            out = folder / f"{label}@{name}.onnx"
            emit(source.lifted, plan, out)
            kept = reference(source, plan)
            np.savez(out.with_suffix(".npz"), **kept)
            text = {"in": {}, "out": {}}
            for key, array in kept.items():
                side, _, port = key.partition("/")
                text[side][port] = {
                    "type": array.dtype.name,
                    "dims": array.shape,
                    "data": array.reshape(-1).tolist(),
                }
            out.with_suffix(".json").write_text(json.dumps(text))


def ran(command: Sequence[str | Path], **more: str) -> list[dict]:
    """Return the rows that a runner prints; a crash becomes one row."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, env=os.environ | more
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        rows.append({"file": "?@?", "why": f"the runner ended with {done.returncode}: {done.stderr[-100:]}"})
    return rows


def cell(rows: list[dict]) -> str:
    """Return the largest error of the files of a form, or how many fail."""
    failed = [r for r in rows if "why" in r]
    good = [r["error"] for r in rows if "error" in r]
    if failed:
        first = failed[0]
        return f"{len(failed)} of {len(rows)} fail ({first['file'].partition('@')[2].removesuffix('.onnx')})"
    return f"{max(good):.0e}" if good else ""


def simplified(folder: Path, python: Path, code: str, out: Path) -> dict[str, tuple[int, int, int]]:
    """Simplify every file; return, by form, bytes before and after, and how many files the tool refused."""
    command = [str(python), "-c", code, str(folder), str(out)]
    subprocess.run(command, capture_output=True, check=False)
    found: dict[str, tuple[int, int, int]] = {}
    for path in sorted(folder.glob("*.onnx")):
        label = path.name.partition("@")[0]
        target = out / path.name
        before, after, refused = found.get(label, (0, 0, 0))
        if target.exists():
            target.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes())
            before, after = before + path.stat().st_size, after + target.stat().st_size
        found[label] = before, after, refused + (not target.exists())
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--python", type=Path, help="An interpreter with openvino, onnx, onnxsim and onnxslim."
    )
    arguments.add_argument("--node-modules", type=Path, help="A folder with onnxruntime-web.")
    arguments.add_argument("--out", type=Path, help="Write the table here; default: print it.")
    options = arguments.parse_args()
    columns: dict[str, list[dict]] = {}
    slim: dict[str, dict[str, tuple[int, int, int]]] = {}
    with tempfile.TemporaryDirectory(prefix="tqs-runtimes-") as name:
        folder = Path(name)
        write_files(folder)
        runner = HERE / "run_emitted.py"
        columns["onnxruntime"] = ran([sys.executable, runner, folder])
        if options.python:
            for runtime in PYTHON_RUNTIMES[1:]:
                columns[runtime] = ran([options.python, runner, folder, runtime])
        if options.node_modules:
            command = ["node", HERE / "run_emitted.cjs", folder]
            columns["onnxruntime-web"] = ran(command, NODE_PATH=str(options.node_modules.resolve()))
        for tool, code in SIMPLIFIERS.items() if options.python else ():
            out = folder / tool
            out.mkdir()
            slim[tool] = simplified(folder, options.python, code, out)
            columns[f"{tool}, error"] = ran([sys.executable, runner, out])
    labels = list(dict.fromkeys(r["file"].partition("@")[0] for r in columns["onnxruntime"]))
    named = {c: rows[0].get("version", "?") for c, rows in columns.items() if rows}
    versions = "; ".join(f"{c} {v}" for c, v in named.items() if not c.endswith(("error", "exact")))
    heads = ["form", *columns, *(f"{tool}, bytes" for tool in slim)]
    lines = [
        "# Emitted files in other runtimes, and after simplifiers",
        f"\nMade by `python tools/other_runtimes.py` on {processor()}.",
        f"{versions}.",
        "Errors: relative, against FP32's graph fed the decoded weights, the largest of three models.\n",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for label in labels:
        cells = [cell([r for r in rows if r["file"].partition("@")[0] == label]) for rows in columns.values()]
        for found in slim.values():
            before, after, refused = found.get(label, (0, 0, 0))
            share = f"{after / before:.2f}" if before else "-"
            cells.append(f"{share} ({refused} refused)" if refused else share)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    failures = {
        f"{c}: {r['why']}": f"{c}, {r['file']}: {r['why']}"
        for c, rows in columns.items()
        for r in rows
        if "why" in r
    }
    if failures:
        lines += ["\nFailures, the first of each kind:\n", *(f"- {text}" for text in failures.values())]
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
