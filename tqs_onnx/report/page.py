"""The report as one HTML page that needs no network: charts by Plotly, tables to search, sort, filter and download.

Everything that comes from a model or a file is text: Jinja2 escapes it in the page, `figures.text` in the charts, and
what the script reads is JSON in which no tag can end the element that holds it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tqs_onnx.analysis.table import Cell, Table
from tqs_onnx.jobs.pareto import Pareto
from tqs_onnx.report.figures import (
    Chart,
    cumulative_chart,
    growth_chart,
    probe_chart,
    role_chart,
    tier_chart,
    weights_chart,
)
from tqs_onnx.report.forecasts import difference_chart, forecast_chart
from tqs_onnx.report.frontier_figures import frontier_chart, prediction_chart
from tqs_onnx.report.run import Run, all_scores, tables_of
from tqs_onnx.report.words import (
    picks_of,
    sentence_of,
    size_text,
    tiles_of,
    whys,
)
from tqs_onnx.scoring.scores import Scores, Status
from tqs_onnx.verification.manifest import Manifest
from tqs_onnx.version import VERSION
from tqs_passes.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: charts, then text, then tables."""

    key: str
    title: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    lines: tuple[str, ...] = ()
    intro: str = ""


def html_page(runs: Sequence[Run], commands: Mapping[str, Sequence[str]]) -> str:
    """Return the report of some runs.

    Parameters
    ----------
    runs : sequence of Run
        The first that was verified, else the first, is shown in full; with several, a comparison comes first.
    commands : mapping of str to sequence of str
        The command lines that make each run again, by its name.
    """
    runs = sorted(runs, key=lambda run: run.manifest is None)
    main = runs[0]
    sections = [s for s in _sections(runs, commands) if s.charts or s.tables or s.lines]
    v = main.manifest.verification if main.manifest else None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell_text
    charts = {c.key: c for s in sections for c in s.charts}
    return environment.from_string(_asset("page.html")).render(
        title=_title(runs),
        sentence=sentence_of(_file_of(main), v) if v else _unverified(runs),
        tiles=tiles_of(v) if v else (),
        gates=main.manifest.gates if main.manifest else (),
        verified=v is not None,
        sections=sections,
        style=Markup(_asset("style.css")),
        script=Markup(_asset("page.js")),
        plotly=Markup(get_plotlyjs()),
        figures=_embedded({key: list(c.figures.values()) for key, c in charts.items()}),
        version=VERSION,
        numeric=_numeric,
    )


def _unverified(runs: Sequence[Run]) -> str:
    """Return the sentence of runs without a manifest: the balanced point of their frontier, if there is one."""
    frontiers = list(_frontiers(runs).values())
    n = sum(len(pareto.points) for pareto in frontiers)
    if len(frontiers) > 1:
        return f"Frontiers of {len(frontiers)} models, {n} files in all."
    picks = {pick.name: pick for pick in picks_of(frontiers[0])} if frontiers else {}
    best = picks.get("balanced") or picks.get("closest")
    if best is None:
        return "Sensitivity only: no file was written and measured."
    return f"A frontier of {n} files; {best.name}: {best.point.name}, {best.cost}."


def _asset(name: str) -> str:
    return (files("tqs_onnx.report") / "assets" / name).read_text(encoding="utf-8")


def _embedded(document: object) -> Markup:
    """Return JSON that can stand inside a script element."""
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(body.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _title(runs: Sequence[Run]) -> str:
    return _file_of(runs[0]) if len(runs) == 1 else f"{len(runs)} runs compared"


def _file_of(run: Run) -> str:
    return next(iter(run.manifest.output)) if run.manifest and run.manifest.output else run.name


def cell_text(value: Cell) -> str:
    """Return a cell as it is shown.

    >>> cell_text(None), cell_text(0.123456), cell_text(1234567), cell_text(float("inf")), cell_text(True)
    ('–', '0.1235', '1,234,567', '∞', 'yes')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return "–" if math.isnan(value) else f"{value:.4g}"
    return value


def _numeric(table: Table, column: int) -> bool:
    values = [row[column] for row in table.rows if row[column] is not None]
    return bool(values) and all(isinstance(v, int | float) for v in values)


def _sections(runs: Sequence[Run], commands: Mapping[str, Sequence[str]]) -> list[Section]:
    main = runs[0]
    tables = {t.key: t if len(runs) > 1 else _without_run(t) for t in tables_of(runs)}
    scores = all_scores(runs)
    plans = {r.name: r.plan for r in runs if r.plan is not None}

    def of(*keys: str) -> tuple[Table, ...]:
        return tuple(tables.pop(k) for k in keys if k in tables)

    forecasts = [forecast_chart(main.traces), difference_chart(main.traces)]
    errors = main.manifest.verification.errors if main.manifest else {}
    return [
        _comparison(runs, of("grid", "wins")) if len(runs) > 1 else Section("comparison", ""),
        _frontier(runs, of("matched", "points", "gap")),
        Section("errors", "Error", (growth_chart(errors),) if errors else (), of("errors", "growth")),
        Section("forecasts", "Forecasts", tuple(c for c in forecasts if c is not None)),
        _weights(main),
        Section(
            "sensitivity",
            "Sensitivity",
            _sensitivity(main, scores),
            of("roles", "agreement", "structure", "curvature"),
        ),
        Section(
            "spending", "Where the bytes go", (tier_chart(plans),) if plans else (), of("sizes", "tiers")
        ),
        Section("skipped", "Left out, and why", lines=_left_out(main)),
        Section("paper", "More tables of the paper", tables=tuple(tables.values())),
        _provenance(runs, commands),
    ]


def _sensitivity(main: Run, scores: Mapping[str, Scores]) -> tuple[Chart, ...]:
    if main.scores is None:
        return ()
    charts = [role_chart(main.scores), cumulative_chart(scores)]
    if main.gauss is not None:
        charts.append(probe_chart(main.scores, main.gauss))
    return tuple(charts)


def _without_run(table: Table) -> Table:
    """Return a table without its first column, which names the only run; a row of no run stays as it is."""
    names = {row[0] for row in table.rows}
    if table.columns[0] != "run" or len(names) > 1:
        return table
    return replace(table, columns=table.columns[1:], rows=tuple(row[1:] for row in table.rows))


def _comparison(runs: Sequence[Run], tables: tuple[Table, ...]) -> Section:
    rows = [
        (
            *(r.name, v.bytes_out, v.compression, v.drift.total, v.drift.p95),
            max((e.degradation for e in v.truth.values()), default=None),
            all(g.passed for g in r.manifest.gates),
        )
        for r in runs
        if r.manifest and (v := r.manifest.verification)
    ]
    columns = (
        "run",
        "bytes",
        "times smaller",
        "drift (σ)",
        "95th percentile",
        "worst degradation %",
        "gates hold",
    )
    whole = Table("comparison", "The runs", columns, tuple(rows))
    intro = f"The rest of the page shows {runs[0].name} where a table or chart is of one run."
    return Section("comparison", "Comparison", (), (*((whole,) if rows else ()), *tables), intro=intro)


def _frontier(runs: Sequence[Run], tables: tuple[Table, ...]) -> Section:
    frontiers = _frontiers(runs)
    if not frontiers:
        return Section("frontier", "Frontier")
    charts = [frontier_chart(frontiers), prediction_chart(frontiers)]
    lines = tuple(
        f"{f'{name}, ' if len(frontiers) > 1 else ''}{pick.name}: {pick.point.name}, {pick.cost}"
        for name, pareto in frontiers.items()
        for pick in picks_of(pareto)
    )
    shown = tuple(c for c in charts if c.figures)
    return Section("frontier", "Frontier", shown, tables, lines)


def _frontiers(runs: Sequence[Run]) -> dict[str, Pareto]:
    """Return one frontier for every model, of all runs that swept it, by the names of these runs."""
    found: dict[str, list[tuple[str, Pareto]]] = {}
    for run in runs:
        if run.pareto is not None:
            found.setdefault(run.pareto.source_sha256, []).append((run.name, run.pareto))
    return {
        ", ".join(name for name, _ in held): held[0][1].model_copy(
            update={"points": tuple(p for _, pareto in held for p in pareto.points)}
        )
        for held in found.values()
    }


def _weights(run: Run) -> Section:
    if run.plan is None:
        return Section("weights", "Weights")
    reasons = whys(run.plan, run.scores)
    chart = weights_chart(run.plan, run.scores, reasons)
    return Section("weights", "Weights", (chart,), (_weight_table(run.plan, run.scores, reasons),))


def _weight_table(plan: Plan, scores: Scores | None, reasons: Mapping[str, str]) -> Table:
    known = {s.weight: s for s in scores.weights} if scores else {}
    rows: list[tuple[Cell, ...]] = []
    for i, a in enumerate(plan.assignments, 1):
        s = known.get(a.weight)
        rows.append(
            (
                *(i, a.label, s.role.value if s and s.role else None, "×".join(map(str, a.shape))),
                *(f"{a.tier.value} by rows" if a.rows else a.tier.value, a.rounding, a.n_bytes),
                *(s.status.value if s else None, s.gamma_task if s else a.gamma),
                *(" ".join(s.readers) if s else None, reasons[a.weight]),
            )
        )
    columns = (
        *("#", "weight", "role", "shape", "tier", "rounding", "bytes", "status", "γ_task", "readers"),
        "why this tier",
    )
    return Table("weights", "Every weight, in graph order", columns, tuple(rows))


def _left_out(run: Run) -> tuple[str, ...]:
    lines = list(run.plan.warnings) if run.plan else []
    if run.manifest:
        lines += run.manifest.verification.notes
    for status, why in (
        (
            Status.UNSTABLE,
            "not perturbed: the probe made the rollout NaN or infinite, so they keep their precision",
        ),
        (Status.OFF_TRAJECTORY, "not scored: they reach only outputs outside the trajectory"),
        (Status.UNPROBED, "not scored: the probe rounds them without an error"),
    ):
        names = [w.label for w in run.scores.weights if w.status is status] if run.scores else []
        if names:
            lines.append(f"{len(names)} weights {why}: {', '.join(names)}")
    return tuple(lines)


def _provenance(runs: Sequence[Run], commands: Mapping[str, Sequence[str]]) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        if run.manifest is not None:
            rows += [(run.name, what, name, value) for what, name, value in _facts(run.manifest)]
    table = Table(
        "provenance", "What went in, and what came out", ("run", "what", "name", "value"), tuple(rows)
    )
    table = table if len(runs) > 1 else _without_run(table)
    lines = tuple(line for run in runs for line in commands.get(run.name, ()))
    intro = "The command below makes the run again, from its folder." if lines else ""
    return Section("provenance", "Provenance", (), (table,) if rows else (), lines, intro)


def _facts(manifest: Manifest) -> list[tuple[str, str, str]]:
    facts = [
        (f"input: {role}", name, digest)
        for role, held in manifest.inputs.items()
        for name, digest in held.items()
    ]
    facts += [("output", name, digest) for name, digest in manifest.output.items()]
    facts += [("version", name, value) for name, value in manifest.versions.items()]
    facts += [
        ("setting", "provider", manifest.provider),
        ("setting", "profile", manifest.profile),
        ("licence of the source", "", manifest.licence or "not stated"),
        ("plan", "SHA-256", manifest.plan_sha256),
        ("bytes", "source", size_text(manifest.verification.bytes_in)),
        ("bytes", "file", size_text(manifest.verification.bytes_out)),
    ]
    return facts
