"""Measures the data of the baseline study: drift and error of files of equal bytes, one JSON file per cell.

A cell is a data set, a stage and a width W; its budget is the size of the uniform file, with every matrix at W bits per
channel. All methods round the same matrices and store the rest identically, as FP16; every figure is measured on a
written file, rolled out in a stock session. The two stages share no rows::

    stage    scored, calibrated and tuned on    judged on
    choose   training rows                      validation rows     what is fixed here …
    final    validation rows                    test rows           … is judged here

The Lorenz-96 demo has no rows: `choose` splits its scoring contexts in two, and `final` scores on all of them.

The default configuration is measured on four kinds of contexts: real ones, made ones alone (no data), made ones beside
real ones, and real ones for the scores with integers from the weights alone.

    python -m tools.study.baseline_cells choose --runs FOLDER [--set ETTh1] [--bits 3] [--methods uniform,default]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.study.zoo import ZOO, data_root
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import PlanOptions, Request, added_drift, amplification, scored
from tqs_onnx.allocation.file_size import file_bytes
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.uniform_plan import uniform_choices, uniform_plan
from tqs_onnx.emission import emit
from tqs_onnx.inputs.data import DataOptions, read_spec
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.stages import planned, refined
from tqs_onnx.refinement.instruments import Instruments, instruments_on
from tqs_onnx.refinement.measured_objective import Responder, plan_measured
from tqs_onnx.refinement.refine import Refined, RefineOptions
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.contexts.load import check_disjoint, load_contexts
from tqs_onnx.rollout.distance import n_space, ruler_for
from tqs_onnx.rollout.made.make import made_contexts_of
from tqs_onnx.rollout.made.request import MadeRequest
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.assign import Assigned, RoundingOptions, round_plan
from tqs_onnx.rounding.tune import qep_settings
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.score import score
from tqs_onnx.verification.evaluate import measure_drift, measure_truth
from tqs_passes.grids.scales import FREE_ROUNDINGS, FreeRounding
from tqs_passes.plan.candidates import Candidate
from tqs_passes.plan.plan import Plan
from tqs_passes.tier import DEFAULT_TIERS
from tqs_passes.weights import Role

TABLES = {
    "ETTh1": "ETT-small/ETTh1.csv.gz",
    "ETTh2": "ETT-small/ETTh2.csv.gz",
    "ETTm1": "ETT-small/ETTm1.csv.gz",
    "ETTm2": "ETT-small/ETTm2.csv.gz",
    "exchange_rate": "exchange_rate/exchange_rate.csv.gz",
    "weather": "weather/weather.csv.gz",
}
LORENZ = "lorenz96"
SETS = (*TABLES, LORENZ)
WIDTHS = (2, 3, 4)
STAGES = {"choose": ("train", "validation"), "final": ("validation", "test")}
MOST_SCORING = 42
"""Number of scoring contexts of a table, distributed over its columns."""
ENDS_BITS = 6
"""Width of the first and last matrices in the control that protects them."""

Say = Callable[[str], None]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """The data that a method may use, and the data it is judged on."""

    source: Source
    spec: RolloutSpec
    scoring: Contexts
    judging: Contexts


def split_of(name: str, stage: str) -> Split:
    """Read a data set; its two kinds of contexts share no rows."""
    if name == LORENZ:
        folder = ZOO.parent / "tqs_models" / LORENZ
        source = open_source(folder / "model.onnx")
        spec = read_spec(DataOptions(folder / "rollout.toml", folder / "contexts.npz"), source)
        every = load_contexts(folder / "contexts.npz", spec, source.signature)
        if stage == "final":
            return Split(source, spec, every, load_contexts(folder / "eval.npz", spec, source.signature))
        half = every.n_contexts // 2
        return Split(source, spec, every.take(range(half)), every.take(range(half, every.n_contexts)))
    folder, table = ZOO / "timesfm_mini", data_root() / TABLES[name]
    source = open_source(folder / "model.onnx")
    spec = read_spec(DataOptions(folder / "rollout.toml", table), source)
    seen, unseen = STAGES[stage]
    scoring = load_contexts(table, spec, source.signature, split=seen, limit=MOST_SCORING)  # type: ignore[arg-type]
    judging = load_contexts(table, spec, source.signature, split=unseen)  # type: ignore[arg-type]
    check_disjoint(scoring, judging)
    return Split(source, spec, scoring, judging)


class Ours:
    """The default configuration on one set of contexts; a plan is made once for each budget and rounding."""

    def __init__(
        self, source: Source, request: Request, instruments: Instruments, results: Results | None = None
    ) -> None:
        self.results = Results(None) if results is None else results
        self._source, self._request, self._instruments = source, request, instruments
        self._made: dict[tuple[int, str], Refined] = {}

    def refined(self, budget: int, refine: RefineOptions) -> Refined:
        """Return what `tqs quantize` writes within a budget."""
        key = budget, refine.rounding.title
        if key not in self._made:
            options = QuantizeOptions(Budget(max_bytes=budget), profile="exact", refine=refine)
            plan, self._request = planned(
                *(self._request, budget, self._source, self._instruments, options, self.results)
            )
            self._made[key] = refined(plan, self._request, self._instruments, options)
        return self._made[key]


_MADE: dict[str, Ours] = {}


def alike(request: Request) -> Request:
    """Return the request in which everything but matrices is stored as in uniform files."""
    first = uniform_choices(request.menus, WIDTHS[0])
    menus = tuple(
        m if len(m.weight.shape) > 1 else replace(m, candidates=(c,))
        for m, c in zip(request.menus, first, strict=True)
    )
    return replace(request, menus=menus)


class Table:
    """One data set of one stage, scored; expensive values are computed once."""

    def __init__(self, split: Split, threads: int) -> None:
        source, spec, scoring = split.source, split.spec, split.scoring
        self.split = split
        bed = Testbed(source.lifted, source.survey, spec, scoring, RunOptions("cpu", threads=threads))
        scores = score(bed, source.sha256)
        bed = bed.scaled(scores.sigma)
        self.requests = {
            r: alike(request_for(source, scores, "exact", DEFAULT_TIERS, rounding=r)) for r in FREE_ROUNDINGS
        }
        self.request = self.requests["unbiased"]
        self.judging = bed.on(split.judging)
        self.nominal = self.judging.roll_file(source.path, keep_other=False)
        instruments = instruments_on(bed)
        self.calibration, self.tuner = instruments.calibration, instruments.tuner
        self.responders = {
            method: Responder(instruments, RoundingOptions(method), source.sha256, Results(None))
            for method in ("unbiased", "gptq")
        }
        self.real = Ours(source, self.request, instruments)
        self._threads, self._bed = threads, bed

    @cached_property
    def mixed(self) -> Ours:
        """The default configuration with made contexts beside the real ones."""
        split = self.split
        beside = self._made_contexts(split.scoring)
        return Ours(split.source, self.request, instruments_on(self._bed, None, beside), self.real.results)

    def _made_contexts(self, like: Contexts | None = None) -> Contexts:
        source, spec = self.split.source, self.split.spec
        request = MadeRequest(MOST_SCORING)
        return made_contexts_of(source.path, source.lifted, source.signature, spec, request, like=like)

    @cached_property
    def made(self) -> Ours:
        """The default configuration on made contexts alone; one for all tables of a model."""
        source, spec = self.split.source, self.split.spec
        known = _MADE.get(source.sha256)
        if known is None:
            run = RunOptions("cpu", threads=self._threads)
            bed = Testbed(source.lifted, source.survey, spec, self._made_contexts(), run)
            scores = score(bed, source.sha256)
            request = alike(request_for(source, scores, "exact", DEFAULT_TIERS))
            known = _MADE[source.sha256] = Ours(source, request, instruments_on(bed.scaled(scores.sigma)))
        return known

    def judged(self, assigned: Assigned) -> Cell:
        """Write a file, roll it out on the judging contexts, and return its figures."""
        spec, contexts, sigma = self.split.spec, self.split.judging, self.judging.sigma
        with tempfile.TemporaryDirectory(prefix="tqs-study-") as folder:
            file = Path(folder) / "candidate.onnx"
            emit(self.split.source.lifted, assigned.plan, file, assigned.codes)
            ours = self.judging.roll_file(file, keep_other=False)
            n_bytes = file.stat().st_size
        time_after = self.nominal.time_after
        drift = measure_drift(self.nominal.outputs, ours.outputs, spec, contexts, sigma, time_after)
        truth = measure_truth(self.nominal.outputs, ours.outputs, spec, contexts, time_after)
        squares = ruler_for(self.nominal.outputs, spec, contexts, sigma).squares(
            ours.outputs, self.nominal.outputs
        )
        spaces = n_space(self.nominal.outputs, spec, contexts)
        return {
            "bytes": n_bytes,
            "predicted": assigned.plan.predicted_drift,
            "joint": assigned.plan.joint_drift,
            "basis": None if assigned.plan.prediction is None else assigned.plan.prediction.basis,
            "chosen": next((t.name for t in assigned.plan.tried if t.chosen), None),
            "drift": drift.total,
            "per_variable": drift.per_variable,
            "energies": {v: (s.mean(axis=1) / spaces[v]).tolist() for v, s in squares.items()},
            "mae": {v: e.mae for v, e in truth.items()},
            "mae_fp32": {v: e.mae_fp32 for v, e in truth.items()},
        }


def ends_plan(request: Request, bits: int, budget: int, roles: Mapping[str, Role]) -> Plan:
    """Return the control: first and last matrices at 6 bits, the others at W, or W − 1 from the middle outwards."""
    ends = {m.weight.name for m in request.menus if roles[m.weight.name] in (Role.INPUT, Role.OUTPUT)}
    wide, plain, lean = (uniform_choices(request.menus, b) for b in (ENDS_BITS, bits, bits - 1))
    body = [i for i, m in enumerate(request.menus) if m.weight.name not in ends and len(m.weight.shape) > 1]
    order = sorted(body, key=lambda i: (abs(body.index(i) - (len(body) - 1) / 2), i))
    chosen = [w if m.weight.name in ends else p for m, w, p in zip(request.menus, wide, plain, strict=True)]
    for i in order:
        if file_bytes(request.size, chosen) <= budget:
            break
        chosen[i] = lean[i]
    return plan_of(request, chosen)


def plan_of(request: Request, chosen: Sequence[Candidate]) -> Plan:
    """Return the plan of these candidates."""
    base = uniform_plan(request, WIDTHS[0])
    scores = {s.weight: s for s in request.scores.weights}
    assignments = tuple(
        scored(c, s, amplification(s, c.assignment.error_energy, request.scores), request.scores)
        for c, s in ((c, scores[c.assignment.weight]) for c in chosen)
    )
    update = {
        "assignments": assignments,
        "n_bytes": file_bytes(request.size, list(chosen)),
        "predicted_drift": added_drift(assignments, request.scores),
    }
    return base.model_copy(update=update)


class Judge:
    """Measures the methods of one cell; methods that already have figures are not measured again."""

    def __init__(self, table: Table, bits: int, file: Path) -> None:
        self.table, self.bits, self.file = table, bits, file
        self.found: dict[str, Cell] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.budget = uniform_plan(table.request, bits).n_bytes

    def lacks(self, *names: str) -> bool:
        """Whether one of these methods has no figures yet."""
        return any(name not in self.found for name in names)

    def one(self, name: str, plan: Plan, rounding: RoundingOptions) -> None:
        """Measure a plan under one rounding."""
        if self.lacks(name):
            start = time.process_time()
            assigned = round_plan(plan, self.table.calibration, rounding)
            self.keep(name, assigned, rounding.title, start)

    def ours(self, name: str, way: Ours, refine: RefineOptions) -> None:
        """Measure the default configuration on a kind of contexts."""
        if self.lacks(name):
            start = time.process_time()
            found = way.refined(self.budget, refine)
            self.keep(name, Assigned(found.plan, found.codes, ()), refine.rounding.title, start)

    def keep(self, name: str, assigned: Assigned, rounding: str, start: float) -> None:
        """Write the file of a method, judge it, and save its figures; `start`: CPU seconds at which it began."""
        made_s = time.process_time() - start
        cell = self.table.judged(assigned)
        if cell["bytes"] > self.budget:
            raise SystemExit(f"{name} at W{self.bits} has {cell['bytes']} bytes, more than {self.budget}")
        self.found[name] = {**cell, "rounding": rounding, "cpu_s": made_s}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        say(f"  W{self.bits} {name}: {cell['bytes']} bytes, drift {cell['drift']:.4g}")

    def tuned(self, name: str, plan: Plan, scales: FreeRounding) -> None:
        """Measure a plan under QEP, with the setting that is best on contexts held out of the calibration."""
        if self.lacks(name):
            settings = qep_settings(RoundingOptions("qep", scales))
            best, _ = self.table.tuner.best(plan, settings)
            say(f"  {best.title}")
            self.one(name, plan, best)


def uniform_files(judge: Judge) -> None:
    """Measure the four baselines, on their published scales and on unbiased ones."""
    for scales in ("rtn", "mse", "unbiased"):
        plan = uniform_plan(judge.table.requests["mse"], judge.bits)  # rtn: two bits may be worse than one
        judge.one(f"uniform {scales}", plan, RoundingOptions(scales))
    for scales in ("mse", "unbiased"):
        plan = uniform_plan(judge.table.requests[scales], judge.bits)
        judge.one(f"uniform gptq, {scales}", plan, RoundingOptions("gptq", scales))
        judge.one(f"uniform gptaq, {scales}", plan, RoundingOptions("gptaq", scales))
        judge.tuned(f"uniform qep, {scales}", plan, scales)


def free_files(judge: Judge) -> None:
    """Measure the objectives paper, energy and measured, whose integers need no data."""
    table, budget = judge.table, judge.budget
    for objective, scales in (
        (Objective.PAPER, "rtn"),
        (Objective.PAPER, "unbiased"),
        (Objective.ENERGY, "mse"),
        (Objective.ENERGY, "unbiased"),
    ):
        plan = plan_within(table.requests[scales], budget, PlanOptions(objective=objective))
        judge.one(f"{objective.value}, {scales}", plan, RoundingOptions(scales))
    if judge.lacks("measured, unbiased"):
        options = PlanOptions(objective=Objective.MEASURED)
        plan = plan_measured(table.request, budget, options, table.responders["unbiased"]).plan
        judge.one("measured, unbiased", plan, RoundingOptions("unbiased"))


def data_files_of(judge: Judge, methods: Sequence[str]) -> None:
    """Measure data-aware rounding of the plans that the measured responses to GPTQ give."""
    table = judge.table
    names = [f"measured + {m}" for m in methods]
    if judge.lacks(*names):
        options = PlanOptions(objective=Objective.MEASURED)
        plan = plan_measured(table.request, judge.budget, options, table.responders["gptq"]).plan
        if "gptq" in methods:
            judge.one("measured + gptq", plan, RoundingOptions("gptq"))
        if "gptaq" in methods:
            judge.one("measured + gptaq", plan, RoundingOptions("gptaq"))
        judge.tuned("measured + qep", plan, "unbiased")


def default_files(judge: Judge) -> None:
    """Measure the default configuration on real contexts, on made ones, and with integers from the weights alone."""
    table, usual = judge.table, RefineOptions()
    weights = replace(usual, rounding=RoundingOptions(usual.rounding.free))
    judge.ours("default, no data", table.made, usual)
    judge.ours("default, weights only", table.real, weights)
    judge.ours("default, real", table.real, usual)


def mixed_files(judge: Judge) -> None:
    """Measure the default configuration with made contexts beside the real ones."""
    judge.ours("default, mixed", judge.table.mixed, RefineOptions())


def controls(judge: Judge) -> None:
    """Measure two ways to spend the same bytes without rollouts, rounded like our best method."""
    table, budget = judge.table, judge.budget
    roles = {w.name: w.role for w in table.split.source.survey.weights}
    judge.tuned("ends at 6 bits + qep", ends_plan(table.request, judge.bits, budget, roles), "unbiased")
    local = plan_within(table.request, budget, PlanOptions(objective=Objective.LOCAL))
    judge.tuned("local + qep", local, "unbiased")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument(
        "--runs", type=Path, required=True, help="Folder of the figures; what is there stays."
    )
    parser.add_argument("--set", dest="sets", action="append", choices=SETS)
    parser.add_argument("--bits", type=int, action="append", choices=WIDTHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--methods", default="uniform,default,mixed,free,data,controls", help="Which methods to measure."
    )
    given = parser.parse_args()

    for name in given.sets or SETS:
        table: Table | None = None
        for bits in given.bits or WIDTHS:
            file = given.runs / f"{given.stage}.{name}.W{bits}.json"
            if table is None:
                split = split_of(name, given.stage)
                say(
                    f"{name}: {split.scoring.n_contexts} scoring, {split.judging.n_contexts} judging contexts"
                )
                table = Table(split, given.threads)
            judge = Judge(table, bits, file)
            aware = ("gptq", "gptaq", "qep") if given.stage == "choose" else ("gptq", "qep")
            steps: dict[str, Callable[[], None]] = {
                "uniform": lambda judge=judge: uniform_files(judge),
                "default": lambda judge=judge: default_files(judge),
                "mixed": lambda judge=judge: mixed_files(judge),
                "free": lambda judge=judge: free_files(judge),
                "data": lambda judge=judge, aware=aware: data_files_of(judge, aware),
            }
            if given.stage == "final":
                steps["controls"] = lambda judge=judge: controls(judge)
            for wanted in given.methods.split(","):
                if wanted in steps:
                    steps[wanted]()


if __name__ == "__main__":
    main()
