"""Draws bars in the terminal: the forecast error step by step, and the most sensitive weights."""

from __future__ import annotations

from tqs_onnx.analysis.sensitivity import targets
from tqs_onnx.report.words import tiles_of
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.verify import Verification
from tqs_passes.errors import one_line

#: Maximum number of steps shown; of more, an evenly spread subset that includes the last one.
_MOST_ROWS = 12
_WIDTH = 48
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MOST_WEIGHTS = 10
#: Longest name of a weight beside its bar.
_NAME = 36


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


def sensitivity_chart(scores: Scores) -> list[str]:
    """Return the lines of a chart: the weights of highest γ_task, as far as they lie above the least sensitive."""
    alive = sorted(targets(scores), key=lambda w: (-(w.gamma_task or 0.0), w.weight))
    if len(alive) < 2:
        return []
    least = alive[-1].gamma_task or 0.0
    span = (alive[0].gamma_task or 0.0) - least
    if not span > 0:
        return []
    shown = alive[:_MOST_WEIGHTS]
    names = [one_line(w.label, _NAME) for w in shown]
    width = max(map(len, names))
    lines = [f"most sensitive of {len(alive)} weights, γ_task above the least ({least:.3g})"]
    for name, w in zip(names, shown, strict=True):
        gamma = w.gamma_task or 0.0
        bar = _bar((gamma - least) / span, "█", _WIDTH - 12)
        lines.append(f"{name:<{width}} {bar:<{_WIDTH - 12}} {gamma:.3g}")
    return lines


def figures(v: Verification) -> list[str]:
    """Return the four figures of a file as the report shows them: size, drift, degradation, latency and memory."""
    tiles = tiles_of(v)
    width = max(len(tile.label) for tile in tiles)
    notes = [one_line(tile.note.replace("\N{NO-BREAK SPACE}", " "), 100) for tile in tiles]
    return [f"{t.label:<{width}}  {t.value}  ({note})" for t, note in zip(tiles, notes, strict=True)]


def _shown(n: int) -> list[int]:
    """Return the steps to show, from 0: the first one, and every k-th up to the last."""
    every = -(-(n - 1) // (_MOST_ROWS - 1))
    return sorted({0, *range(n - 1, 0, -every)})


def _bar(share: float, mark: str, width: int = _WIDTH) -> str:
    """Return a bar; a bar that is not empty has at least the smallest visible width."""
    eighths = max(round(8 * width * share), 1 if share > 0 else 0)
    full, rest = divmod(eighths, 8)
    if mark != "█":
        return mark * (full + (rest >= 4 or full == 0))
    return mark * full + (_EIGHTHS[rest] if rest else "")
