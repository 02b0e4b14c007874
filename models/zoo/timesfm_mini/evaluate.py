"""Write the skill table of the card: mean absolute error of the 500-value rollout on the test rows.

Usage: ``python models/zoo/timesfm_mini/evaluate.py`` from the repository root; needs the tables (see data.py)
and no torch. Errors are in units of each column's training deviation, mean over windows, columns and lead
times. Persistence repeats the last value; seasonal naive repeats the last day.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from data import Table, load_tables, windows

from tqs_onnx.rollout.session import Session, SessionOptions, open_session

CONTEXT, OUTPUT, STEPS, HORIZON = 512, 128, 4, 500


def rollout(session: Session, context: np.ndarray) -> np.ndarray:
    """Roll float32 [b, 512] out over `STEPS` calls, sliding the window; return float32 [b, HORIZON]."""
    parts = []
    for _ in range(STEPS):
        parts.append(session.run({"context": session.value(context)})["forecast"].numpy().copy())
        context = np.concatenate([context[:, OUTPUT:], parts[-1]], axis=1)
    return np.concatenate(parts, axis=1)[:, :HORIZON]


def errors(session: Session, table: Table) -> tuple[int, float, float, float]:
    """Return the number of windows, and the errors of the model, persistence and the last day repeated."""
    scale = table.values[slice(*table.split.train)].std(0)[None, :, None]
    context, truth = windows(table, table.split.test, CONTEXT, HORIZON)
    made = rollout(session, context.reshape(-1, CONTEXT)).reshape(truth.shape)
    lead = np.arange(HORIZON) % table.season
    naive = context[:, :, CONTEXT - table.season :][:, :, lead]
    mae = [float((np.abs(guess - truth) / scale).mean()) for guess in (made, context[:, :, -1:], naive)]
    return len(context), mae[0], mae[1], mae[2]


def main() -> None:
    """Write the table to standard output, as Markdown."""
    parser = argparse.ArgumentParser(description="Write timesfm_mini's skill table.")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"))
    session = open_session(parser.parse_args().model, options=SessionOptions(threads=1))
    out = sys.stdout.write
    out("| table | windows x columns | timesfm_mini | persistence | seasonal naive | model / persistence |\n")
    out("|---|---:|---:|---:|---:|---:|\n")
    for t in load_tables():
        n, model, persistence, naive = errors(session, t)
        season = f"{naive:.3f}" if t.season > 1 else "(the same)"
        shape = f"{n} x {t.values.shape[1]}"
        out(
            f"| {t.name} | {shape} | {model:.3f} | {persistence:.3f} | {season} "
            f"| {model / persistence:.3f} |\n"
        )


if __name__ == "__main__":
    main()
