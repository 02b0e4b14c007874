"""Weights of equal content are one unit that costs one copy: in the budget, in the plan, in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tests.models import run
from tests.rollouts import Floats, judging, model, opened, scored, spec_of, values, write_case
from tqs_onnx.allocation.budget import Budget, source_weight_bytes
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.tier_set import TierSet, parse_rule
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind, perturbed
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import verify
from tqs_passes.files.model import file_facts
from tqs_passes.plan.plan import Plan, read_plan
from tqs_passes.tier import DEFAULT_TIERS, Tier

WIDTH, TIMES, STEPS = 48, 6, 4
#: Two matrices of 48 × 48 bytes, their scales, and the graph: 12 MatMul, 6 Tanh, and the nodes that decode.
ONCE = 2 * WIDTH * WIDTH + 1400
W, V = (values(WIDTH, WIDTH, seed=s, scale=1.05 * WIDTH**-0.5) for s in (1, 2))


def unrolled(*, first: Floats = W, last: Floats = V) -> onnx.ModelProto:
    """Return y = f(f(… f(x))) with f(x) = tanh(x W) V, exported six times under twelve names."""
    lines, weights, at = [], {}, "x"
    for i in range(TIMES):
        out = "y" if i == TIMES - 1 else f"h{i}"
        lines.append(f"p{i} = MatMul({at}, W{i})  t{i} = Tanh(p{i})  {out} = MatMul(t{i}, V{i})")
        weights |= {f"W{i}": first.copy(), f"V{i}": last.copy()}
        at = out
    text = f"(float[b, {WIDTH}] x) => (float[b, {WIDTH}] y) {{ {'  '.join(lines)} }}"
    return model(text, weights)


def rolled(x: Floats, w: Floats = W, v: Floats = V) -> np.ndarray:
    """Return the trajectory [context, step, value], in float64."""
    made, at = [], x.astype(np.float64)
    for _ in range(STEPS):
        for _ in range(TIMES):
            at = np.tanh(at @ w.astype(np.float64)) @ v.astype(np.float64)
        made.append(at)
    return np.stack(made, axis=1)


def rolled_by(path: Path, x: Floats) -> np.ndarray:
    proto, made = onnx.load(path), []
    for _ in range(STEPS):
        x = run(proto, {"x": x})["y"]
        made.append(x)
    return np.stack(made, axis=1)


def planned(folder: Path, budget: Budget, tiers: tuple[Tier, ...]) -> tuple[Source, Request, Plan]:
    source = opened(folder, unrolled())
    request = request_for(source, scored(source, spec_of(STEPS), values(3, WIDTH)), "fast", tiers)
    n_bytes = budget.n_bytes(request.menus, request.size)
    return source, request, plan_within(request, n_bytes, PlanOptions())


def test_a_block_exported_six_times_fits_six_times_fewer_bytes_in_int8(tmp_path: Path) -> None:
    planned(tmp_path, Budget(compression=6), (Tier.INT8,))
    source, _, plan = planned(tmp_path, Budget(max_bytes=ONCE), (Tier.INT8,))
    emit(source.lifted, plan, tmp_path / "o.onnx")
    assert [a.tier for a in plan.assignments] == [Tier.INT8] * 2
    assert 2 * WIDTH * WIDTH < file_facts(tmp_path / "o.onnx").n_bytes == plan.n_bytes <= ONCE


def test_with_every_tier_the_plan_is_no_worse_than_int8_stored_once(tmp_path: Path) -> None:
    x = values(3, WIDTH, seed=9)
    errors: list[float] = []
    budgets = {
        "every": (Budget(compression=12), DEFAULT_TIERS),
        "int8": (Budget(max_bytes=ONCE), (Tier.INT8,)),
    }
    for name, (budget, tiers) in budgets.items():
        source, request, plan = planned(tmp_path / name, budget, tiers)
        assert plan.n_bytes <= request.size.source_bytes / 12
        emit(source.lifted, plan, tmp_path / name / "o.onnx")
        made = rolled_by(tmp_path / name / "o.onnx", x)
        errors.append(float(np.sqrt(np.mean((made - rolled(x)) ** 2)) / rolled(x).std()))
    assert errors[0] <= errors[1] < 0.1


def test_the_copies_are_perturbed_together(tmp_path: Path) -> None:
    source = opened(tmp_path, unrolled())
    x = values(3, WIDTH)
    scores = scored(source, spec_of(STEPS), x, Probe(kind=ProbeKind.QUANT, bits=6), units="raw")
    assert [s.weight for s in scores.weights] == ["W0", "V0"]
    moved = perturbed(W, Probe(kind=ProbeKind.QUANT, bits=6), "W0", 0, 1)[0]
    energy = np.mean(np.sum((rolled(x, moved) - rolled(x)) ** 2, axis=(1, 2)))
    # float32 against float64, over 24 layers whose errors grow little.
    assert scores.weights[0].amplification == pytest.approx(energy / np.sum((moved - W) ** 2), rel=1e-2)


def test_equal_matrices_are_stored_once_in_the_bytes_planned(tmp_path: Path) -> None:
    for tier in (Tier.FP32, Tier.FP16, Tier.INT4):
        folder = tmp_path / tier.value
        source, request, _ = planned(folder, Budget(compression=1), (tier,))
        smallest = sum(min(c.assignment.n_bytes for c in m.candidates) for m in request.menus)
        plan = plan_within(request, request.size.of(smallest) + 800, PlanOptions())
        emit(source.lifted, plan, folder / "o.onnx")
        assert file_facts(folder / "o.onnx").n_bytes == plan.n_bytes
        subject = Subject(source.path, folder / "o.onnx", source.lifted, source.survey, plan, {})
        bed = judging(subject, spec_of(STEPS), Contexts({"x": values(2, WIDTH, seed=5)}, {}))
        assert verify(subject, bed).runtime_gap < 1e-5


def test_weight_compression_counts_every_copy_that_the_file_stores(tmp_path: Path) -> None:
    _, request, _ = planned(tmp_path, Budget(compression=2), DEFAULT_TIERS)
    assert source_weight_bytes(request.menus) == 2 * TIMES * WIDTH * WIDTH * 4


def test_a_pattern_may_name_any_of_the_copies(tmp_path: Path) -> None:
    source = opened(tmp_path, unrolled())
    found = TierSet(pins=(parse_rule("V5=INT8", "pin"),)).exceptions(source.survey.weights)
    assert found == {"V0": frozenset({Tier.INT8})}


FUNCTION = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
g (float[b, 48] x) => (float[b, 48] y) { CALLS }
<domain: "local", opset_import: ["" : 18]>
block (a) => (o) { w = Constant<value = float[1] {0.0}>()  p = MatMul(a, w)  o = Tanh(p) }"""


@pytest.mark.parametrize("compression", ["1", "3"])
def test_a_function_called_five_times_never_makes_the_file_grow(compression: str, tmp_path: Path) -> None:
    calls = "  ".join(
        f"{'y' if i == 4 else f'h{i}'} = local.block({f'h{i - 1}' if i else 'x'})" for i in range(5)
    )
    proto = parser.parse_model(FUNCTION.replace("CALLS", calls))
    proto.functions[0].node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(W, "w"))
    case = write_case(tmp_path / "in", proto)
    out = tmp_path / "run"
    arguments = case.arguments("--out", str(out), "--compression", compression)
    assert main(["quantize", str(case.model), *arguments]) == 0
    written = file_facts(out / "m.tqs.onnx").n_bytes
    assert written == read_plan(out / "plan.json").n_bytes <= case.model.stat().st_size / float(compression)


@pytest.mark.parametrize("rounding", ["gptq", "qep"])
def test_data_choose_the_integers_of_all_copies_together(rounding: str, tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", unrolled())
    out = tmp_path / "run"
    options = [
        "--rounding",
        rounding,
        "--tiers",
        "INT4",
        "--compression",
        "15",
        *("--repair", "0", "--candidates", "1"),
        "--objective",
        "energy",
    ]
    assert main(["quantize", str(case.model), *case.arguments("--out", str(out), *options)]) == 0
    assert [a.rounding for a in read_plan(out / "plan.json").assignments if a.tier.is_integer] == [
        rounding
    ] * 2
