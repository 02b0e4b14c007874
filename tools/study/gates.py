"""Computes γ by gate for the recurrent models of the zoo: `tqs inspect --split-gates`, then `tqs score`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tools.study.real_cases import RECURRENT
from tools.study.scored import DRAWS, Study
from tools.study.zoo import TABLES, ZOO, data_root
from tqs_onnx.analysis.sensitivity import percentiles
from tqs_onnx.cli.main import main as tqs
from tqs_onnx.scoring.scores import Scores, WeightScore, read_scores
from tqs_passes.transforms.split_gates import GATES

Rows = list[list[str]]


def gate_scores(study: Study, model: str) -> dict[str, Scores]:
    """Return the scores of a model whose gates are weights of their own, by probe: quant and gauss."""
    out = study.folder / f"{model}.gates"
    files = {"quant": out / "scores.json", "gauss": out / "scores.gauss.json"}
    if not all(f.is_file() for f in files.values()):
        study.folder.mkdir(parents=True, exist_ok=True)
        split = study.folder / f"{model}.gates.onnx"
        if not split.is_file():
            _run("inspect", str(ZOO / model / "model.onnx"), "--split-gates", str(split), "--json")
        table = data_root() / TABLES[RECURRENT[model]][0]
        given = ["--rollout", str(ZOO / model / "rollout.toml"), "--contexts", str(table)]
        probes = ["--probe", "both", "--draws", str(DRAWS), "--response-bits", "none"]
        _run(
            "score", str(split), *given, *probes, "--threads", str(study.threads), "--out", str(out), "--json"
        )
    return {probe: read_scores(file) for probe, file in files.items()}


def _run(*arguments: str) -> None:
    code = tqs(list(arguments))
    if code:
        raise SystemExit(f"tqs {' '.join(arguments)} ended with {code}")


def short(label: str) -> str:
    """Return a label without the scopes of an exporter."""
    parts = [p for p in label.split("/") if p not in ("while", "ReadVariableOp:0")]
    return "/".join(parts[-2:])


def packed(scores: Scores) -> dict[tuple[str, tuple[str, ...]], list[WeightScore]]:
    """Return the gates of every packed weight, in order, by label and gate names."""
    found: dict[str, list[WeightScore]] = {}
    names = {*(g for gates in GATES.values() for g in gates), *"123456789"}
    for w in scores.weights:
        whole, _, gate = w.label.rpartition(".")
        if gate in names and whole:
            found.setdefault(whole, []).append(w)
    return {
        (whole, tuple(w.label.rpartition(".")[2] for w in gates)): gates
        for whole, gates in found.items()
        if len(gates) > 1
    }


def by_weight(model: str, scores: dict[str, Scores]) -> dict[tuple[str, ...], Rows]:
    """Return a row for every packed weight of a model, by the names of its gates: γ_task of both probes."""
    gauss = {w.weight: w for w in scores["gauss"].weights}
    tables: dict[tuple[str, ...], Rows] = {}
    for (whole, gates), found in packed(scores["quant"]).items():
        cells = [f"{_gamma(w)} ({_gamma(gauss[w.weight])})" for w in found]
        tables.setdefault(gates, []).append([model, short(whole), found[0].role.value, *cells])
    return tables


def by_gate(model: str, scores: Scores) -> list[str]:
    """Return the mean percentile of γ_task of each gate's matrices among all alive weights, most sensitive first."""
    percentile = percentiles(scores)
    found: dict[str, list[float]] = {}
    for (_, gates), weights in packed(scores).items():
        for gate, w in zip(gates, weights, strict=True):
            if w.weight in percentile and sum(n > 1 for n in w.shape) > 1:
                found.setdefault(gate, []).append(percentile[w.weight])
    ranked = sorted(found.items(), key=lambda item: -float(np.mean(item[1])))
    return [model, ", ".join(f"{gate} {np.mean(values):.0f} ({len(values)})" for gate, values in ranked)]


def _gamma(w: WeightScore) -> str:
    return "–" if w.gamma_task is None else f"{w.gamma_task:.3f}"


def section(study: Study) -> Iterable[tuple[list[str], Rows]]:
    """Return the tables of the section as (head, rows): the gates of each model, then every weight."""
    scores = {model: gate_scores(study, model) for model in RECURRENT}
    yield (
        ["model", "probe", "gates, most sensitive first"],
        [
            [m, probe, by_gate(m, found[probe])[1]]
            for m, found in scores.items()
            for probe in ("quant", "gauss")
        ],
    )
    merged: dict[tuple[str, ...], Rows] = {}
    for model, found in scores.items():
        for gates, rows in by_weight(model, found).items():
            merged.setdefault(gates, []).extend(rows)
    for gates, rows in merged.items():
        yield ["model", "weight", "role", *gates], rows
