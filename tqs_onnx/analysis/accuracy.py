"""Errors of several runs side by side: per variable in native units, and who wins (paper, Tables 12 to 26)."""

from __future__ import annotations

from collections.abc import Mapping

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.verification.verify import Verification


def error_table(runs: Mapping[str, Verification]) -> Table:
    """Return the errors of every run and variable, in native units."""
    rows: list[tuple[Cell, ...]] = []
    for run, v in runs.items():
        for name, e in v.errors.items():
            truth: tuple[Cell, ...] = (None,) * 8
            if e.fp32 is not None and e.file is not None:
                truth = (
                    *(e.fp32.mae, e.file.mae, e.fp32.rmse, e.file.rmse),
                    *(e.file.bias, e.degradation, e.degradation_low, e.degradation_high),
                )
            rows.append(
                (run, v.compression, name, e.unit, v.drift.per_variable[name], e.against_fp32.mae, *truth)
            )
    columns = (
        *(
            "run",
            "times smaller",
            "variable",
            "unit",
            "drift (σ)",
            "MAE from FP32",
            "MAE FP32",
            "MAE",
            "RMSE FP32",
            "RMSE",
        ),
        *("bias", "degradation %", "low", "high"),
    )
    return Table(
        "errors", "Errors by variable, in native units", columns, tuple(rows), "Tables 12 and 14 to 26"
    )


def grid_table(runs: Mapping[str, Verification]) -> Table:
    """Return the MAE of every variable (rows) and run (columns), the lowest named: the layout of the paper."""
    variables = list(dict.fromkeys(name for v in runs.values() for name in v.errors))
    rows: list[tuple[Cell, ...]] = []
    for name in variables:
        found = {run: v.errors[name] for run, v in runs.items() if name in v.errors}
        mae = {run: (e.file or e.against_fp32).mae for run, e in found.items()}
        fp32 = next((e.fp32.mae for e in found.values() if e.fp32 is not None), None)
        best = min(mae, key=lambda run: mae[run])
        unit = next(iter(found.values())).unit
        rows.append((name, unit, fp32, *(mae.get(run) for run in runs), best))
    columns = ("variable", "unit", "FP32", *runs, "lowest")
    return Table("grid", "MAE by variable and run", columns, tuple(rows), "Tables 12 and 14 to 25")


def win_table(runs: Mapping[str, Verification]) -> Table:
    """Return how many variables every run wins, by MAE against the truth and by drift."""
    variables = list(dict.fromkeys(name for v in runs.values() for name in v.errors))
    by_mae, by_drift = dict.fromkeys(runs, 0), dict.fromkeys(runs, 0)
    n_mae = 0
    for name in variables:
        mae = {r: e.file.mae for r, v in runs.items() if (e := v.errors.get(name)) and e.file is not None}
        drift = {r: v.drift.per_variable[name] for r, v in runs.items() if name in v.drift.per_variable}
        if mae:
            n_mae += 1
            by_mae[min(mae, key=lambda r: mae[r])] += 1
        by_drift[min(drift, key=lambda r: drift[r])] += 1
    rows = tuple(
        (run, v.bytes_out, by_mae[run] if n_mae else None, n_mae, by_drift[run], len(variables))
        for run, v in runs.items()
    )
    columns = ("run", "bytes", "wins by MAE", "of", "wins by drift", "of all")
    return Table("wins", "Variables won; compare only runs of about equal bytes", columns, rows, "Table 13")
