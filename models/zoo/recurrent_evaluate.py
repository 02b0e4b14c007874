"""Write the skill table of the recurrent forecasters' cards: mean absolute error of the rollout on the test rows.

Usage: ``python models/zoo/recurrent_evaluate.py`` from the repository root; needs the tables and no torch. Errors are
in units of each column's training deviation, mean over windows, columns and lead times, windows entirely inside the
test rows. Persistence repeats the last row.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tqs_onnx.rollout.session import SessionOptions, open_session

ZOO = Path(__file__).resolve().parent
sys.path.insert(1, str(ZOO / "timesfm_mini"))

from data import load_tables  # noqa: E402

#: Table, rows of a window, rows of a forecast, rows between windows, by model.
MODELS = {
    "lstm_ett": ("ETTm1", 96, 48, 480),
    "gru_weather": ("weather", 72, 72, 432),
    "seq2seq_ett": ("ETTm1", 96, 96, 480),
}


def errors(model: str) -> tuple[int, int, float, float]:
    """Return the numbers of windows and columns, and the errors of the model and of persistence."""
    name, context, horizon, stride = MODELS[model]
    table = next(t for t in load_tables() if t.name == name)
    first, last = table.split.test
    starts = range(first, last - context - horizon + 1, stride)
    cut = np.stack([table.values[s : s + context + horizon] for s in starts]).astype(np.float32)
    scale = table.values[slice(*table.split.train)].std(0)
    session = open_session(ZOO / model / "model.onnx", options=SessionOptions(threads=1))
    window, made = cut[:, :context], np.empty((len(cut), 0, cut.shape[2]), np.float32)
    while made.shape[1] < horizon:
        rows = session.run({"window": session.value(np.ascontiguousarray(window))})["next"].numpy()
        made = np.concatenate([made, rows], axis=1)
        window = np.concatenate([window, rows], axis=1)[:, -context:]
    truth = cut[:, context:]
    guesses = (made[:, :horizon], np.repeat(cut[:, context - 1 : context], horizon, axis=1))
    ours, persistence = (float(np.abs((guess - truth) / scale).mean()) for guess in guesses)
    return len(cut), cut.shape[2], ours, persistence


def main() -> None:
    """Write the table to standard output, as Markdown."""
    sys.stdout.write("| model | table | windows x columns | model | persistence | model / persistence |\n")
    sys.stdout.write("|---|---|---:|---:|---:|---:|\n")
    for model, (table, *_) in MODELS.items():
        n, columns, ours, persistence = errors(model)
        sys.stdout.write(
            f"| {model} | {table} | {n} x {columns} | {ours:.3f} | {persistence:.3f} | {ours / persistence:.3f} |\n"
        )


if __name__ == "__main__":
    main()
