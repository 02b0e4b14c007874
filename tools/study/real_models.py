"""Writes models/zoo/REAL_MODELS.md: small models of other people against float16 conversion and onnxruntime's INT8.

Each model is rolled out as its task demands: its state is fed back, and sound or series come from outside. Contexts
are cut from ETTm1 and weather, standardised: no owner's data come with the models. Every method gets the bytes of the
file that it is compared with. The models lie in `$TQS_DATA/models` and are not part of the repository; one that is
missing is left out and named.

    python -m tools.study.real_models --runs FOLDER --out models/zoo/REAL_MODELS.md [--model silero]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from tools.study.zoo import ZOO, data_root

sys.path.insert(1, str(ZOO / "timesfm_mini"))

from data import load_tables

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, Outcome, quantize
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.verification.evaluate import measure_drift
from tqs_passes.errors import TqsError
from tqs_passes.files.model import load_model
from tqs_passes.files.save import save_model
from tqs_passes.pipeline import Pipeline
from tqs_passes.transforms.half_precision.whole import HalfWhole
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.slimming import slim_passes

CONTEXTS = 6
"""Number of scoring contexts, and of evaluation contexts."""
Arrays = dict[str, np.ndarray]
NOTHING: frozenset[str] = frozenset()
_THEIR_ERRORS = (
    *(RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError),
    onnx.shape_inference.InferenceError,
)


@dataclass(frozen=True, slots=True)
class Real:
    """One model: its files, its rollout, and how contexts are made from a standardised table [rows, columns]."""

    file: str
    spec: str
    arrays: Callable[[np.ndarray, int], Arrays]
    half: str = ""


def spec(outputs: str, *parts: str, steps: int = 1, batch: bool = False) -> str:
    """Return a rollout spec."""
    axis = "batch_axis = 0\n" if batch else ""
    return (
        f'version = 1\n[rollout]\nsteps = {steps}\n{axis}[trajectory]\noutputs = ["{outputs}"]\n'
        + "\n".join(parts)
        + "\n"
    )


def fed(output: str, into: str, more: str = 'mode = "replace"') -> str:
    """Return a feedback."""
    return f'[[feedback]]\noutput = "{output}"\ninput = "{into}"\n{more}'


def kept(kind: str, name: str) -> str:
    """Return a forcing or a static input."""
    return f'[[{kind}]]\ninput = "{name}"'


def sound(table: np.ndarray, start: int, steps: int, length: int) -> np.ndarray:
    """Return frames of a series taken for sound, float32 [steps, length], half of each frame new."""
    series = table[start:, start % table.shape[1]]
    frames = np.stack([series[i * length // 2 : i * length // 2 + length] for i in range(steps)])
    return (0.1 * frames).astype(np.float32)


STEPS = 24


def silero(table: np.ndarray, start: int) -> Arrays:
    """Make 576 samples a call; the state is zero at first."""
    arrays = {"input": sound(table, start, STEPS, 576)[:, None], "state": np.zeros((2, 1, 128), np.float32)}
    return arrays | {"sr": np.array(16000, np.int64)}


def spectrum(table: np.ndarray, start: int) -> np.ndarray:
    """Return spectra, complex64 [steps, 257]."""
    return np.fft.rfft(sound(table, start, STEPS, 512) * np.hanning(512)).astype(np.complex64)


def dtln_1(table: np.ndarray, start: int) -> Arrays:
    """Make magnitudes of 257 bins a call."""
    magnitudes = np.abs(spectrum(table, start)).astype(np.float32)
    return {"input_2": magnitudes[:, None], "input_3": np.zeros((2, 128, 2), np.float32)}


def dtln_2(table: np.ndarray, start: int) -> Arrays:
    """Make 512 samples a call."""
    return {"input_4": sound(table, start, STEPS, 512)[:, None], "input_5": np.zeros((2, 128, 2), np.float32)}


def gtcrn(table: np.ndarray, start: int) -> Arrays:
    """Make a complex spectrum a call, and three caches."""
    found = spectrum(table, start)
    caches = {"conv_cache": (2, 1, 16, 16, 33), "tra_cache": (2, 3, 1, 1, 16), "inter_cache": (2, 1, 33, 16)}
    mix = np.stack([found.real, found.imag], axis=-1).astype(np.float32)[:, None, :, None]
    return {"mix": mix} | {name: np.zeros(shape, np.float32) for name, shape in caches.items()}


def window(name: str, rows: int, columns: int) -> Callable[[np.ndarray, int], Arrays]:
    """Return the maker of windows of a table."""

    def made(table: np.ndarray, start: int) -> Arrays:
        wide = table[start : start + rows, np.arange(columns) % table.shape[1]]
        return {name: np.ascontiguousarray(wide, np.float32)}

    return made


def one(output: str, name: str) -> str:
    """Return the spec of a model that is called once."""
    return spec(output, kept("static", name), batch=True)


MODELS = {
    "silero": Real(
        "silero/silero_vad_op18_ifless.onnx",
        spec("output", fed("stateN", "state"), kept("forcing", "input"), kept("static", "sr"), steps=STEPS),
        silero,
        "silero/silero_vad_half.onnx",
    ),
    "dtln_1": Real(
        "dtln/model_1.onnx",
        spec(
            "activation_2",
            fed("tf_op_layer_stack_2", "input_3"),
            kept("forcing", "input_2"),
            steps=STEPS,
            batch=True,
        ),
        dtln_1,
    ),
    "dtln_2": Real(
        "dtln/model_2.onnx",
        spec(
            "conv1d_3",
            fed("tf_op_layer_stack_5", "input_5"),
            kept("forcing", "input_4"),
            steps=STEPS,
            batch=True,
        ),
        dtln_2,
    ),
    "gtcrn": Real(
        "gtcrn/gtcrn.onnx",
        spec(
            "enh",
            *(fed(f"{c}_cache_out", f"{c}_cache") for c in ("conv", "tra", "inter")),
            kept("forcing", "mix"),
            steps=STEPS,
        ),
        gtcrn,
    ),
    "earthpulse": Real(
        "earthpulse/lstm_model.onnx",
        spec(
            "dense_1", fed("dense_1", "input_1", 'mode = "shift"\naxis = 1\nexpand = 2'), steps=6, batch=True
        ),
        window("input_1", 18, 1),
    ),
    "mvts_lstm": Real("mvts/lstm.onnx", one("return_hat", "sequence"), window("sequence", 60, 2)),
    "mvts_transformer": Real(
        "mvts/transformer_vs.onnx", one("return_hat", "sequence"), window("sequence", 60, 2)
    ),
    "mvts_patchtst": Real("mvts/patchtst.onnx", one("return_hat", "sequence"), window("sequence", 60, 2)),
    "financial": Real("financial/model_fixed.onnx", one("prediction", "input"), window("input", 60, 10)),
    "rul": Real("rul/lstm_model.onnx", one("output_0", "input_layer"), window("input_layer", 30, 17)),
    "trader_lstm": Real("trader/lstm.onnx", one("output", "input"), window("input", 10, 14)),
    "sentinel": Real("sentinel/lstm_pre_v2.onnx", one("Identity:0", "args_0"), window("args_0", 30, 31)),
}


def standardised() -> np.ndarray:
    """Return ETTm1 and weather side by side, standardised, float64 [rows, 28]."""
    tables = {t.name: t.values for t in load_tables()}
    rows = min(len(tables[name]) for name in ("ETTm1", "weather"))
    wide = np.concatenate([tables[name][:rows] for name in ("ETTm1", "weather")], axis=1)
    return (wide - wide.mean(0)) / wide.std(0)


def prepared(name: str, folder: Path, table: np.ndarray) -> DataOptions:
    """Write the spec and the contexts of a model; scoring and evaluation share no rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rollout.toml").write_text(MODELS[name].spec, encoding="utf-8")
    half = len(table) // 2
    for kind, first in (("scoring", 0), ("evaluation", half)):
        starts = [first + i * (half - 9000) // CONTEXTS for i in range(CONTEXTS)]
        made = [MODELS[name].arrays(table, start) for start in starts]
        np.savez(folder / f"{kind}.npz", **{k: np.stack([m[k] for m in made]) for k in made[0]})
    return DataOptions(folder / "rollout.toml", folder / "scoring.npz", evaluation=folder / "evaluation.npz")


def theirs(source: Path, folder: Path) -> dict[str, Path | str]:
    """Return the files of other methods, or why there is none; graphs are slimmed like ours."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found: dict[str, Path | str] = {}
    opened = open_source(source)
    weights = frozenset(w.name for w in opened.survey.weights)
    try:
        half = HalfWhole().apply(Pipeline(slim_passes(weights)).apply(opened.lifted).model).model
        save_model(ShortNames(weights).apply(half).model, folder / "float16.onnx")
        found["float16"] = folder / "float16.onnx"
    except TqsError as error:
        found["float16"] = error.what
    slim = (
        Pipeline((ShortNames(weights), *slim_passes(weights), ShortNames(weights))).apply(opened.lifted).model
    )
    plain = folder / "slim.onnx"
    del slim.proto.graph.value_info[:]  # their program believes it, also where it is wrong
    save_model(slim, plain)
    for label, per_channel in (("INT8 per tensor", False), ("INT8 per channel", True)):
        path = folder / f"{label.replace(' ', '_')}.onnx"
        try:
            quantize_dynamic(str(plain), str(path), per_channel=per_channel, weight_type=QuantType.QInt8)
        except _THEIR_ERRORS as error:  # what their program raises is part of the result
            found[label] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        save_model(ShortNames(NOTHING).apply(load_model(path)).model, path)
        found[label] = path
    return found


def measured(outcome: Outcome, file: Path) -> float:
    """Return the drift of a file on the evaluation contexts of a job."""
    require_loadable(file, outcome.bed.provider)
    nominal = outcome.bed.roll_file(outcome.source.path, keep_other=False)
    ours = outcome.bed.roll_file(file, keep_other=False)
    bed = outcome.bed
    return measure_drift(
        nominal.outputs, ours.outputs, bed.spec, bed.contexts, bed.sigma, nominal.time_after
    ).total


def study(name: str, runs: Path, table: np.ndarray) -> list[dict[str, object]]:
    """Measure one model; return a row per compared file."""
    real, root = MODELS[name], data_root() / "models"
    folder = runs / name.replace(" ", "_")
    data = prepared(name, folder, table)
    source = root / real.file
    others = theirs(source, folder)
    if real.half:
        others["the owner's half"] = root / real.half
    rows: list[dict[str, object]] = []
    budgets: dict[str, int] = {k: v.stat().st_size for k, v in others.items() if isinstance(v, Path)}
    n_bytes = source.stat().st_size
    budgets["8 times smaller"] = n_bytes // 8
    for label, budget in budgets.items():
        row: dict[str, object] = {"model": name, "source": n_bytes, "compared": label, "bytes": budget}
        for rounding in ("unbiased", "qep"):
            options = QuantizeOptions(Budget(max_bytes=budget), run=RunOptions("cpu", threads=1))
            refine = replace(options.refine, rounding=replace(options.refine.rounding, method=rounding))  # type: ignore[arg-type]
            try:
                outcome = quantize(
                    Job(
                        source,
                        data,
                        folder / f"{label.replace(' ', '_')}.{rounding}",
                        replace(options, refine=refine),
                        True,
                    )
                )
            except TqsError as error:
                row[rounding] = str(error.what)
                continue
            v = outcome.verification
            row[rounding], row[f"{rounding} bytes"] = v.drift.total, v.bytes_out
            other = others.get(label)
            if isinstance(other, Path) and "drift" not in row:
                try:
                    row["drift"] = measured(outcome, other)
                except TqsError as error:
                    row["drift"] = str(error.what)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    for label, why in others.items():
        if isinstance(why, str):
            rows.append({"model": name, "source": n_bytes, "compared": label, "drift": why})
    return rows


def shown(value: object) -> str:
    """Return a cell."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)[:70].replace("|", "/")
    )


HEAD = """# Real models

Made by `python -m tools.study.real_models --runs RUNS --out models/zoo/REAL_MODELS.md`; no figure is typed in by hand.
Small models of other people (their licences lie beside them in `$TQS_DATA/models`; nothing of theirs is in this
repository), rolled out as their tasks demand, on contexts cut from standardised ETTm1 and weather: six for scoring, six
others for the drifts below. All files, also those of other methods, have short names and a slim graph. Ours get at most
the bytes of the file they are compared with. Drifts are in units of each variable's deviation.

| model | bytes | compared with | its bytes | its drift | ours, no data | ours, QEP |
|---|---:|---|---:|---:|---:|---:|
"""


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, required=True, help="Folder of the figures; what is there stays."
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", choices=sorted(MODELS))
    given = parser.parse_args()
    table = standardised()
    lines: list[str] = []
    for name in MODELS:
        file = given.runs / f"{name.replace(' ', '_')}.json"
        if not (data_root() / "models" / MODELS[name].file).is_file():
            lines.append(f"| {name} | | not in `$TQS_DATA/models` | | | | |")
            continue
        if not file.exists():
            if given.model and name not in given.model:
                lines.append(f"| {name} | | not measured | | | | |")
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(study(name, given.runs, table), indent=1) + "\n", encoding="utf-8")
        for row in json.loads(file.read_text(encoding="utf-8")):
            cells = ("source", "compared", "bytes", "drift", "unbiased", "qep")
            lines.append(f"| {name} | " + " | ".join(shown(row.get(c)) for c in cells) + " |")
    given.out.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
