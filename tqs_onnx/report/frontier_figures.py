"""The figures of frontiers, as Plotly JSON: error against size, and predicted against measured drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tqs_onnx.jobs.matched import UNIFORM
from tqs_onnx.jobs.pareto import Pareto, Point
from tqs_onnx.report.figures import MARKS, SERIES, Chart, Json, laid_out, rounded, text
from tqs_onnx.report.words import picks_of

#: What a frontier shows: name, title of the axis, field of a point.
_MEASURES = (
    ("drift", "measured drift (σ)", "drift_measured"),
    ("degradation", "degradation of the worst variable (%)", "degradation"),
)


def series_names(points: Sequence[Point]) -> list[str]:
    """Return what each point is a point of: a baseline by its method, ours by whatever its settings differ in."""
    ours = [p for p in points if p.objective != UNIFORM]
    varied = (
        [i for i in range(len(_settings(ours[0]))) if len({_settings(p)[i] for p in ours}) > 1]
        if ours
        else []
    )
    names: list[str] = []
    for p in points:
        if p.objective == UNIFORM:
            names.append(f"uniform, {p.solver}")
            continue
        shown = [0, 1, *(i for i in varied if i > 1)]
        names.append(", ".join(_settings(p)[i] for i in shown))
    return names


def _settings(p: Point) -> tuple[str, ...]:
    least = "none" if p.gamma_min is None else f"{p.gamma_min:g}"
    return (p.objective, p.solver, p.scores, p.rank_by, p.tiers, f"{p.p_fp32:g} in FP32", f"γ above {least}")


def frontier_chart(frontiers: Mapping[str, Pareto]) -> Chart:
    """Return the points of every frontier: measured drift and degradation against compression."""
    figures: dict[str, Json] = {}
    for run, pareto in frontiers.items():
        for name, title, field in _MEASURES:
            data = _curves(pareto, field)
            if data:
                annotations = _arrows(pareto, field)
                figures[f"{run}: {name}" if len(frontiers) > 1 else name] = {
                    "data": data,
                    "layout": laid_out("times smaller", title, annotations=annotations),
                }
    says = "What each size costs. The lower, the closer to FP32."
    return Chart("frontier", "Frontier", says, figures, "Measure" if len(figures) > 1 else "")


def _curves(pareto: Pareto, field: str) -> list[Json]:
    data: list[Json] = []
    names = series_names(pareto.points)
    for i, series in enumerate(dict.fromkeys(names)):
        points = [
            p
            for p, name in zip(pareto.points, names, strict=True)
            if name == series and p.n_bytes and getattr(p, field) is not None
        ]
        if not points:
            continue
        points.sort(key=lambda p: p.n_bytes or 0)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": text(series),
                "x": rounded([p.compression for p in points]),
                "y": rounded([getattr(p, field) for p in points]),
                "text": [text(p.name) for p in points],
                "line": {"color": f"var:{SERIES[i % len(SERIES)]}", "width": 2},
                "marker": {"symbol": MARKS[(i + i // len(SERIES)) % len(MARKS)], "size": 8},
                "hovertemplate": "%{text}<br>%{x:.3g}× smaller: %{y:.3g}<extra></extra>",
            }
        )
    return data


def _arrows(pareto: Pareto, field: str) -> list[Json]:
    return [
        {
            "x": float(pick.point.compression or 1.0),
            "y": float(getattr(pick.point, field) or 0.0),
            "text": pick.name,
            "showarrow": True,
            "arrowcolor": "var:muted",
            "ax": 0,
            "ay": -28,
        }
        for pick in picks_of(pareto)
        if getattr(pick.point, field) is not None
    ]


def prediction_chart(frontiers: Mapping[str, Pareto]) -> Chart:
    """Return predicted against measured drift of the points of every frontier."""
    found = {run: _predictions(pareto) for run, pareto in frontiers.items()}
    figures = {run: figure for run, figure in found.items() if figure is not None}
    says = "How well the drift of a file was known before it was written. Above the dotted line, it drifts further."
    return Chart("prediction", "Predicted against measured", says, figures, "Run" if len(figures) > 1 else "")


def _predictions(pareto: Pareto) -> Json | None:
    data: list[Json] = []
    every: list[float] = []
    for i, (name, field) in enumerate(
        (("sum of single weights", "drift_added"), ("all weights together", "drift_predicted"))
    ):
        points = [p for p in pareto.points if p.drift_measured and getattr(p, field)]
        if points:
            x = [float(getattr(p, field)) for p in points]
            y = [float(p.drift_measured or 0.0) for p in points]
            every += [v for v in (*x, *y) if np.isfinite(v)]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": rounded(x),
                    "y": rounded(y),
                    "text": [text(p.name) for p in points],
                    "marker": {"color": f"var:{SERIES[i]}", "symbol": MARKS[i], "size": 9},
                    "hovertemplate": "%{text}<br>predicted %{x:.3g}, measured %{y:.3g}<extra></extra>",
                }
            )
    if not every:
        return None
    ends = [min(every), max(every)]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "equal",
            "x": ends,
            "y": ends,
            "line": {"color": "var:fp32", "dash": "dot"},
            "hoverinfo": "skip",
        }
    )
    layout = laid_out(
        "predicted drift (σ)",
        "measured drift (σ)",
        xaxis={"type": "log"},
        yaxis={"type": "log", "rangemode": "normal"},
    )
    return {"data": data, "layout": layout}
