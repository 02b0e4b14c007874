"""The charts of the report as Plotly figures: plain dictionaries of traces and layout.

Colours are names such as ``var:file``, which the page replaces by those of the theme, so that one figure serves light
and dark. Names of weights, variables and runs are escaped: Plotly would read ``<b>`` in them as markup.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.analysis.allocation import block_shares
from tqs_onnx.analysis.sensitivity import ROLES, cumulative, percentiles, targets
from tqs_onnx.report.words import size_text
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.errors import Errors, VariableErrors
from tqs_passes.plan.plan import Plan
from tqs_passes.tier import Tier

#: So few steps each have a tick of their own.
_FEW_STEPS = 12
#: Points of a curve; of more, an evenly spread subset that includes the last one.
_MOST_POINTS = 160
_MOST_BLOCKS = 40
SERIES = ("file", "one", "two", "three", "four")
MARKS = ("circle", "square", "diamond", "triangle-up", "x")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure, or several to choose from.

    Parameters
    ----------
    key : str
        Its id in the page.
    title : str
    says : str
        How to read it, in one or two sentences.
    figures : dict of str to dict
        Plotly figures by the name to choose them by.
    choose : str
        What is chosen; empty for a single figure.
    """

    key: str
    title: str
    says: str
    figures: dict[str, Json]
    choose: str = ""


def text(name: object) -> str:
    r"""Return a name as Plotly shows it unchanged.

    >>> text("<b>a\nb</b>")
    '&lt;b&gt;a b&lt;/b&gt;'
    """
    return html.escape(" ".join(str(name).split()), quote=False)


def rounded(values: Sequence[float | None] | NDArray[Any]) -> list[float | None]:
    """Return numbers with five significant digits; None for those that are not finite."""
    return [None if v is None or not np.isfinite(v) else float(f"{v:.5g}") for v in values]


def laid_out(x: str, y: str, **more: Any) -> Json:  # noqa: ANN401  (a layout is made of anything)
    """Return a layout with these titles of the axes; `more` is laid over it."""
    axes: dict[str, Json] = {
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
    }
    merged = {
        key: {**axes.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in more.items()
    }
    return {**axes, **merged}


def _thinned(n: int) -> list[int]:
    return sorted(
        {round((n - 1) * i / max(min(n, _MOST_POINTS) - 1, 1)) for i in range(min(n, _MOST_POINTS))}
    )


def growth_chart(variables: Mapping[str, VariableErrors], key: str = "growth") -> Chart:
    """Return the error of FP32 and of the file by step, for every variable, with bands."""
    figures: dict[str, Json] = {}
    for name, e in variables.items():
        data: list[Json] = []
        if e.fp32 is not None and e.file is not None:
            data += _curve(e.fp32, "FP32", "fp32", "dash") + _curve(e.file, "this file", "file", "solid")
        data += _curve(e.against_fp32, "this file from FP32", "one", "dot", band=e.file is None)
        unit = f" [{e.unit}]" if e.unit not in ("", "1") else ""
        layout = laid_out("step", text(f"mean absolute error{unit}"))
        if len(e.against_fp32.mae_per_step) <= _FEW_STEPS:
            layout["xaxis"]["dtick"] = 1
        figures[name] = {"data": data, "layout": layout}
    return Chart(
        key,
        "Error by step",
        "How the mean absolute error grows over the forecast. Bands are 95 % intervals over contexts. The dotted "
        "line is how far this file is from FP32, whatever the truth.",
        figures,
        "Variable",
    )


def _curve(errors: Errors, name: str, colour: str, dash: str, *, band: bool = True) -> list[Json]:
    kept = _thinned(len(errors.mae_per_step))
    steps = [i + 1 for i in kept]
    found: list[Json] = []
    if band and errors.mae_low:
        low, high = ([side[i] for i in kept] for side in (errors.mae_low, errors.mae_high))
        found.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": steps + steps[::-1],
                "y": rounded(high) + rounded(low[::-1]),
                "fill": "toself",
                "fillcolor": f"var:{colour}:0.16",
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    found.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if len(steps) <= 12 else "lines",
            "name": name,
            "x": steps,
            "y": rounded([errors.mae_per_step[i] for i in kept]),
            "line": {"color": f"var:{colour}", "dash": dash, "width": 2},
            "marker": {"color": f"var:{colour}", "size": 6},
            "hovertemplate": "step %{x}: %{y:.4g}",
        }
    )
    return found


def tier_colours(tiers: Sequence[Tier]) -> dict[Tier, str]:
    """Return a colour for every tier, dark to light with its width; readable with any colour vision."""
    return {tier: f"var:tier{list(Tier).index(tier)}" for tier in tiers}


def weights_chart(plan: Plan, scores: Scores | None, whys: Mapping[str, str]) -> Chart:
    """Return the weights in graph order by sensitivity, coloured by tier."""
    gamma = {w.weight: w.gamma_task for w in scores.weights} if scores else {}
    present = [t for t in Tier if any(a.tier is t for a in plan.assignments)]
    colours = tier_colours(present)
    data: list[Json] = []
    for tier in present:
        chosen = [(i, a) for i, a in enumerate(plan.assignments, 1) if a.tier is tier]
        height = [gamma.get(a.weight) if scores else float(np.prod(a.shape)) for _, a in chosen]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": tier.value,
                "x": [i for i, _ in chosen],
                "y": rounded(height),
                "customdata": [
                    [text(a.label), size_text(a.n_bytes), text(whys[a.weight])] for _, a in chosen
                ],
                "marker": {
                    "color": colours[tier],
                    "size": 10,
                    "symbol": MARKS[present.index(tier) % len(MARKS)],
                    "line": {"width": 1, "color": "var:surface"},
                },
                "hovertemplate": "<b>%{customdata[0]}</b><br>"
                + f"{tier.value}, "
                + "%{customdata[1]}<br>γ %{y:.3g}<br>%{customdata[2]}<extra></extra>",
            }
        )
    layout = laid_out("place in the graph", "γ_task" if scores else "values", yaxis={"rangemode": "normal"})
    says = (
        "Each mark is a weight: the higher, the more its rounding error grows over the forecast. Dead weights have "
        "no γ and stand in the table only."
    )
    return Chart("weights", "Weights by sensitivity and tier", says, {"": {"data": data, "layout": layout}})


def role_chart(scores: Scores) -> Chart:
    """Return the percentiles of γ by role, every weight a dot (Figure 2)."""
    found = percentiles(scores)
    alive = targets(scores)
    data: list[Json] = []
    for role in ROLES:
        chosen = [w for w in alive if w.role is role]
        if chosen:
            data.append(
                {
                    "type": "box",
                    "name": role.value,
                    "y": rounded([found[w.weight] for w in chosen]),
                    "text": [text(w.label) for w in chosen],
                    "boxpoints": "all",
                    "jitter": 0.5,
                    "pointpos": 0,
                    "fillcolor": "var:file:0.14",
                    "line": {"color": "var:file", "width": 1.5},
                    "marker": {"color": "var:one", "size": 5},
                    "hovertemplate": "%{text}: %{y:.0f}<extra></extra>",
                    "showlegend": False,
                }
            )
    layout = laid_out("role", "percentile of γ", yaxis={"range": [-4, 104]})
    says = "Where the sensitive weights are: 100 is the most sensitive of the model (the paper's Figure 2)."
    return Chart("roles", "Sensitivity by role", says, {"": {"data": data, "layout": layout}})


def probe_chart(quant: Scores, gauss: Scores) -> Chart:
    """Return the percentiles of γ under both probes against each other (Table 6)."""
    one, other = percentiles(quant), percentiles(gauss)
    common = [w for w in targets(quant) if w.weight in other]
    data: list[Json] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "weights",
            "x": rounded([one[w.weight] for w in common]),
            "y": rounded([other[w.weight] for w in common]),
            "text": [text(w.label) for w in common],
            "marker": {"color": "var:file", "size": 8},
            "hovertemplate": "%{text}<br>quant %{x:.0f}, gauss %{y:.0f}<extra></extra>",
            "showlegend": False,
        }
    ]
    axes = {"xaxis": {"range": [-4, 104]}, "yaxis": {"range": [-4, 104]}}
    layout = laid_out("percentile of γ, quant probe", "percentile of γ, gauss probe", **axes)
    says = (
        "Whether rounding errors and noise of the same size rank the weights alike: on the diagonal they do."
    )
    return Chart("probes", "Quant against gauss", says, {"": {"data": data, "layout": layout}})


def cumulative_chart(runs: Mapping[str, Scores]) -> Chart:
    """Return the cumulative share of the γ-shift by run (Figure 3)."""
    data: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "even",
            "x": [0, 100],
            "y": [0, 100],
            "line": {"color": "var:fp32", "dash": "dot", "width": 1.5},
            "hoverinfo": "skip",
        }
    ]
    for i, (name, scores) in enumerate(runs.items()):
        x, y = cumulative(scores)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": text(name),
                "x": rounded(100 * x),
                "y": rounded(100 * y),
                "line": {"color": f"var:{SERIES[i % len(SERIES)]}", "width": 2},
                "hovertemplate": "top %{x:.0f} % of the weights: %{y:.0f} %",
            }
        )
    layout = laid_out(
        "weights, most sensitive first (%)", "share of the γ-shift (%)", yaxis={"range": [0, 102]}
    )
    says = "How concentrated sensitivity is: the further above the dotted line, the fewer weights carry it (Figure 3)."
    return Chart(
        "concentration", "Concentration of sensitivity", says, {"": {"data": data, "layout": layout}}
    )


def tier_chart(plans: Mapping[str, Plan]) -> Chart:
    """Return the share of every tier in the values of every block of the graph, for every run."""
    figures: dict[str, Json] = {}
    for run, plan in plans.items():
        shares = block_shares(plan)
        largest = sorted(shares, key=lambda b: -sum(shares[b].values()))[:_MOST_BLOCKS]
        blocks = [b for b in shares if b in largest][::-1]
        present = [t for t in Tier if any(shares[b][t] for b in blocks)]
        colours = tier_colours(present)
        data = [
            {
                "type": "bar",
                "orientation": "h",
                "name": tier.value,
                "y": [text(b) for b in blocks],
                "x": rounded([100 * shares[b][tier] / sum(shares[b].values()) for b in blocks]),
                "marker": {"color": colours[tier], "line": {"width": 1, "color": "var:surface"}},
                "hovertemplate": "%{y}: %{x:.1f} % " + tier.value + "<extra></extra>",
            }
            for tier in present
        ]
        layout = laid_out(
            "share of the values (%)",
            "",
            barmode="stack",
            xaxis={"range": [0, 100]},
            yaxis={"automargin": True, "tickfont": {"size": 11}},
            height=max(260, 120 + 22 * len(blocks)),
        )
        figures[run] = {"data": data, "layout": layout}
    says = (
        "How wide each part of the model is stored. Blocks stand in graph order, the largest forty of them."
    )
    return Chart("tiers", "Tiers by block", says, figures, "Run" if len(figures) > 1 else "")
