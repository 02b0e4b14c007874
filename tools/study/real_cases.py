"""The cases of `real_models`: models with their rollouts and contexts.

Small models of other people lie in `$TQS_DATA/models`; their contexts are cut from ETTm1 and weather, standardised,
because no owner's data come with them. The recurrent models of the zoo are rolled out on the tables they were trained
on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.study.zoo import TABLES, ZOO, data_root

sys.path.insert(1, str(ZOO / "timesfm_mini"))

from data import load_tables

from tqs_onnx.inputs.data import DataOptions

CONTEXTS = 6
"""Number of scoring contexts, and of evaluation contexts."""
Arrays = dict[str, np.ndarray]
RECURRENT = {"lstm_ett": "ETTm1", "gru_weather": "weather", "seq2seq_ett": "ETTm1"}
"""Recurrent models of the zoo, and their tables."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model to compare: its file, its data, and its owner's own smaller file, if there is one."""

    source: Path
    data: DataOptions
    half: Path | None = None


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


def case_of(name: str, runs: Path) -> Case | None:
    """Return a case, with its contexts written into `runs`; None if the file is missing."""
    if name in RECURRENT:
        folder = ZOO / name
        table = data_root() / TABLES[RECURRENT[name]][0]
        data = DataOptions(folder / "rollout.toml", table, calibration=table)
        return Case(folder / "model.onnx", data)
    real, root = MODELS[name], data_root() / "models"
    if not (root / real.file).is_file():
        return None
    data = prepared(name, runs / name, standardised())
    return Case(root / real.file, data, root / real.half if real.half else None)
