"""Draws the forecast error step by step, FP32 beside the emitted file, as bars in the terminal."""

from __future__ import annotations

from tqs_onnx.verification.verify import Verification

#: Maximum number of steps shown; of more, an evenly spread subset that includes the last one.
_MOST_ROWS = 12
_WIDTH = 48
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def error_chart(v: Verification) -> list[str]:
    """Return the lines of a chart: the MAE of the variable that degrades most, or the drift if there is no truth.

    Bars start at 0 and share one scale; ░ is FP32, █ the emitted file.
    """
    if v.truth:
        name, error = max(v.truth.items(), key=lambda item: item[1].degradation)
        series = {"░": error.mae_fp32_per_step, "█": error.mae_per_step}
        title = f"mean absolute error of {name} by step   ░ FP32   █ this file"
    else:
        series = {"█": v.drift.per_step}
        where = ", on made contexts" if v.on_made_contexts else ""
        title = f"drift from FP32 by step, in standard deviations{where}"
    n = len(next(iter(series.values())))
    if n < 2:
        return []
    most = max(max(values) for values in series.values())
    if not 0 < most < float("inf"):
        return []
    lines = [title]
    for step in _shown(n):
        for index, (mark, values) in enumerate(series.items()):
            label = f"{step + 1:>4}" if index == 0 else "    "
            bar = _bar(values[step] / most, mark)
            lines.append(f"{label} {bar:<{_WIDTH}} {values[step]:.3g}")
    return lines


def _shown(n: int) -> list[int]:
    """Return the steps to show, from 0."""
    rows = min(n, _MOST_ROWS)
    return sorted({round((n - 1) * i / max(rows - 1, 1)) for i in range(rows)})


def _bar(share: float, mark: str) -> str:
    """Return a bar; a bar that is not empty has at least the smallest visible width."""
    eighths = max(round(8 * _WIDTH * share), 1 if share > 0 else 0)
    full, rest = divmod(eighths, 8)
    if mark != "█":
        return mark * (full + (rest >= 4 or full == 0))
    return mark * full + (_EIGHTHS[rest] if rest else "")
