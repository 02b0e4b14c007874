"""Weights of equal content that are stored in the same way are stored once, and the bytes saved are spent."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.rollouts import judging, model, opened, scored, spec_of, values, write_case
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit, rewritten
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import verify
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts
from tqs_passes.plan.forms import LEAST_VALUES
from tqs_passes.plan.plan import Plan, read_plan
from tqs_passes.tier import Tier

GRAPH = """(float[b, 40] x) => (float[b, 40] y) {
  p = MatMul(x, W1)  q = Tanh(p)  r = MatMul(q, W2)  s = Tanh(r)  k = Mul(x, half)  t = Mul(s, half)  y = Add(k, t) }"""


def twins(
    folder: Path, profile: Literal["fast", "exact"], tiers: tuple[Tier, ...], *, equal: bool = True
) -> tuple[Source, Request]:
    w = values(40, 40, seed=1, scale=0.2)
    weights = {"W1": w, "W2": w.copy() if equal else w + 0.5, "half": np.array(0.5, np.float32)}
    source = opened(folder, model(GRAPH, weights))
    return source, request_for(source, scored(source, spec_of(), values(2, 40)), profile, tiers)


@pytest.mark.parametrize("tier", [Tier.FP32, Tier.FP16, Tier.INT4])
def test_twins_are_stored_once_in_the_bytes_planned(tier: Tier, tmp_path: Path) -> None:
    source, request = twins(tmp_path, "exact", (tier,))
    # A budget that only this tier fills or, for FP32, that all weights fit in.
    smallest = sum(min(c.assignment.n_bytes for c in m.candidates) for m in request.menus)
    plan = plan_within(request, request.size.of(smallest) + 800, PlanOptions())
    first, second = plan.assignments
    assert (first.same_as, second.same_as) == (None, "W1")
    emit(source.lifted, plan, tmp_path / "o.onnx")
    assert file_facts(tmp_path / "o.onnx").n_bytes == plan.n_bytes < request.size.of(smallest)
    subject = Subject(source.path, tmp_path / "o.onnx", source.lifted, source.survey, plan, {})
    bed = judging(subject, spec_of(), Contexts({"x": values(2, 40, seed=5)}, {}))
    assert verify(subject, bed).runtime_gap < 1e-6


def test_what_twins_save_is_spent(tmp_path: Path) -> None:
    source, request = twins(tmp_path, "exact", (Tier.FP32, Tier.FP16, Tier.INT8, Tier.INT4))
    budget = request.size.source_bytes // 4
    plan = plan_within(request, budget, PlanOptions())
    apart = plan_within(twins(tmp_path / "b", "exact", (Tier.FP32, Tier.FP16, Tier.INT8, Tier.INT4), equal=False)[1],
                        budget, PlanOptions())  # fmt: skip
    assert plan.n_bytes <= budget
    assert sum(a.error_energy for a in plan.assignments) < sum(a.error_energy for a in apart.assignments)
    assert source.survey.weights[1].duplicate_of == "W1"


def test_fused_weights_are_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEAST_VALUES, ("fast", Form.DEQUANTIZE), 0)  # fused, however small
    _, request = twins(tmp_path, "fast", (Tier.INT4,))
    smallest = sum(min(c.assignment.n_bytes for c in m.candidates) for m in request.menus)
    plan = plan_within(request, request.size.of(smallest) + 1500, PlanOptions())
    assert [a.same_as for a in plan.assignments] == [None, None]


def test_a_plan_that_merges_what_differs_is_refused(tmp_path: Path) -> None:
    source, request = twins(tmp_path, "exact", (Tier.FP16,), equal=False)
    plan = plan_within(request, request.size.source_bytes, PlanOptions())
    first, second = plan.assignments
    forged = plan.model_copy(update={"assignments": (first, second.model_copy(update={"same_as": "W1"}))})
    with pytest.raises(InputError, match="'W2' equals 'W1', but they differ"):
        rewritten(source.lifted, forged)


def test_a_plan_that_merges_what_is_stored_apart_is_no_plan(tmp_path: Path) -> None:
    _, request = twins(tmp_path, "exact", (Tier.FP16,))
    plan = plan_within(request, request.size.source_bytes * 3 // 5 + 800, PlanOptions())
    text = plan.to_json().replace('"same_as": "W1"', '"same_as": "W3"')
    with pytest.raises(ValueError, match="is not stored like an earlier 'W3'"):
        Plan.model_validate_json(text)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_twin_has_the_integers_of_the_weight_it_is_stored_as(order: str, tmp_path: Path) -> None:
    # One is read by MatMul, where data choose its integers, the other by an Einsum, where none do.
    readers = {"a": "MatMul", "b": 'Einsum <equation: string = "bi,ij->bj">'}
    first, second = (readers[k] for k in order)
    graph = f"""(float[b, 40] x) => (float[b, 40] y) {{
      p = {first} (x, W1)  q = Tanh(p)  r = {second} (q, W2)  y = Tanh(r) }}"""
    w = values(40, 40, seed=1, scale=0.2)
    case = write_case(tmp_path / "in", model(graph, {"W1": w, "W2": w.copy()}))
    arguments = [
        "--rounding",
        "gptq",
        "--objective",
        "energy",
        "--pin",
        "W*=INT4",
        "--repair",
        "0",
        "--no-rows",
    ]
    budget = ["--compression", "2", "--profile", "exact"]
    out = tmp_path / "run"
    assert main(["quantize", str(case.model), *case.arguments("--out", str(out), *arguments, *budget)]) == 0
    a, b = read_plan(out / "plan.json").assignments
    assert (b.same_as, a.rounding) == ("W1", b.rounding)
