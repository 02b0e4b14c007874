"""Charts of the forecasts that a run kept: curves of one place, maps of the difference on a grid or along a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.report.figures import Chart, Json, rounded, text
from tqs_onnx.verification.traces import Trace

#: Places along a line, or points of a grid, from which a map says more than a curve.
_FEWEST_PLACES = 4
_MOST_FIGURES = 60
_MOST_CELLS = 20_000


def forecast_chart(traces: Mapping[str, Trace]) -> Chart | None:
    """Return FP32, the file and the truth at the first place of every kept context; None if none were kept."""
    figures: dict[str, Json] = {}
    for name, trace in traces.items():
        for i, context in enumerate(trace.contexts):
            if len(figures) < _MOST_FIGURES:
                figures[f"{name}, context {context}"] = _curves(trace, i)
    if not figures:
        return None
    says = (
        "Forecasts of evaluation contexts that the run kept, in the trajectory's units. A state of several places "
        "shows its first."
    )
    return Chart("forecast", "Forecast against truth", says, figures, "Forecast")


def _curves(trace: Trace, i: int) -> Json:
    data: list[Json] = []
    for array, name, colour, dash in (
        (trace.truth, "truth", "truth", "solid"),
        (trace.fp32, "FP32", "fp32", "dash"),
        (trace.file, "this file", "file", "dot"),
    ):
        if array is not None:
            values = array[i].reshape(array.shape[1], -1)[:, 0]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": list(range(1, len(values) + 1)),
                    "y": rounded(values),
                    "line": {"color": f"var:{colour}", "dash": dash, "width": 2},
                    "hovertemplate": "%{y:.4g}",
                }
            )
    layout = {"xaxis": {"title": {"text": "time value"}}, "yaxis": {"title": {"text": "value"}}}
    return {"data": data, "layout": layout}


def difference_chart(traces: Mapping[str, Trace]) -> Chart | None:
    """Return maps of this file − FP32, at the last time value of a grid or along a line over time; None without."""
    figures: dict[str, Json] = {}
    for name, trace in traces.items():
        space = tuple(n for n in trace.fp32.shape[2:] if n > 1)
        if int(np.prod(space, dtype=np.int64)) < _FEWEST_PLACES or len(figures) >= _MOST_FIGURES // 3:
            continue
        delta = trace.file[0].astype(np.float64) - trace.fp32[0]
        delta = delta.reshape(delta.shape[0], *space)
        label = f"{name}, context {trace.contexts[0]}"
        if len(space) == 1:
            figures[label] = _map(delta.T, "time value", "place")
        else:
            last = delta[-1].reshape(-1, *space[-2:])[0]
            figures[label] = _map(last[::-1], "column", "row, north at the top")
    if not figures:
        return None
    says = (
        "Where this file leaves FP32: blue is below, red above. On a grid at the last time value, else along the state "
        "over time. No coastlines: the model does not say where its grid lies."
    )
    return Chart("difference", "This file − FP32", says, figures, "Forecast")


def _map(values: NDArray[Any], x: str, y: str) -> Json:
    step = max(1, int(np.ceil((values.size / _MOST_CELLS) ** 0.5)))
    values = values[::step, ::step]
    most = float(np.abs(values).max()) or 1.0
    data = [
        {
            "type": "heatmap",
            "z": [rounded(row) for row in values],
            "zmin": -most,
            "zmax": most,
            "colorscale": [[0, "var:low"], [0.5, "var:middle"], [1, "var:high"]],
            "colorbar": {"thickness": 12, "tickformat": ".2g", "outlinewidth": 0},
            "hovertemplate": f"{text(x)} %{{x}}, {text(y)} %{{y}}: %{{z:.3g}}<extra></extra>",
        }
    ]
    ticks = {"showticklabels": False} if "north" in y else {}
    layout = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, **ticks}}
    return {"data": data, "layout": layout}
