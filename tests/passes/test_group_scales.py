"""Scales for groups of a channel's values: rounding, files, and the methods that look at data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import Case, forecaster, judging, opened, scored, spec_of, values, write_case
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rounding.codes_file import codes_digest, read_codes, write_codes
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import verify
from tqs_passes.grids.grid import Grid, as_groups, from_groups, grids_for
from tqs_passes.grids.nearest import quantize
from tqs_passes.plan.plan import read_plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_group_is_rounded_as_if_it_were_a_channel(bits: int, axis: int) -> None:
    w = values(32, 48, seed=bits)
    for grid in grids_for(bits):
        grouped = quantize(w, bits, axis, grid, group=16)
        parts = as_groups(w, axis, 16)
        alone = quantize(parts, bits, 0, grid)
        np.testing.assert_array_equal(as_groups(grouped.decode(), axis, 16), alone.decode())
        np.testing.assert_array_equal(from_groups(alone.levels, w.shape, axis, 16), grouped.levels)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_group_lies_within_one_channel(axis: int) -> None:
    # Each channel has a size of its own: groups that crossed channels could not follow it.
    sizes = np.geomspace(1e-3, 1e3, 8, dtype=np.float32)
    w = values(8, 8, seed=1) * (sizes[:, None] if axis == 0 else sizes[None, :])
    error = quantize(w, 8, axis, Grid.SIGNED, group=4).decode() - w
    assert (np.abs(error) <= 0.01 * np.abs(w).max(axis=1 - axis, keepdims=True)).all()


@pytest.mark.parametrize("tier", [t for t in Tier if t.is_integer])
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_files_with_groups_hold_their_bytes_and_decode_bit_for_bit(
    tier: Tier, opset: int, tmp_path: Path
) -> None:
    proto = forecaster(32, 64)
    proto.opset_import[0].version = opset
    source = opened(tmp_path, proto)
    scores = scored(source, spec_of(), values(2, 32))
    request = request_for(source, scores, "exact", (tier,), Serving(groups=(16,), rows=False))
    grouped = {m.weight.name: [c for c in m.candidates if c.assignment.group] for m in request.menus}
    assert [name for name, found in grouped.items() if found] == ["W1", "W2"]
    chosen = [(grouped[m.weight.name] or [m.candidates[0]])[0] for m in request.menus]
    plan = plan_within(request, 2 * request.size.source_bytes, PlanOptions())
    assignments = tuple(c.assignment for c in chosen)
    plan = plan.model_copy(update={"assignments": assignments})
    emit(source.lifted, plan, tmp_path / "o.onnx")
    shared = {key: size for c in chosen for key, size in c.shared.items()}
    expected = request.size.of(sum(a.n_bytes for a in assignments) + sum(shared.values()))
    assert (tmp_path / "o.onnx").stat().st_size == expected
    subject = Subject(source.path, tmp_path / "o.onnx", source.lifted, source.survey, plan, {})
    bed = judging(subject, spec_of(), Contexts({"x": values(2, 32, seed=5)}, {}), scores.sigma)
    assert verify(subject, bed).runtime_gap < 1e-6


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("groups"), forecaster(32, 64), n=8)


@pytest.mark.parametrize("method", ["rtn", "mse", "gptq", "gptaq", "qep"])
def test_a_baseline_has_groups_under_every_method(method: str, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["--method", method, "--bits", "3", "--group", "16", "--profile", "exact", "--threads", "1"]
    assert main(["baseline", str(case.model), *arguments, *case.arguments("--out", str(out))]) == 0
    plan = read_plan(out / "plan.json")
    assert {a.weight: a.group for a in plan.assignments if a.tier is Tier.INT3} == {"W1": 16, "W2": 16}
    codes = read_codes(out / "codes.npz") if plan.codes_sha256 else {}
    if method in ("gptq", "gptaq", "qep"):
        assert {name: (c.group, c.scales.shape) for name, c in codes.items()} == {
            "W1": (16, (2, 1, 64)),
            "W2": (16, (4, 1, 32)),
        }
        write_codes(tmp_path / "again.npz", codes)
        assert codes_digest(read_codes(tmp_path / "again.npz")) == plan.codes_sha256


def test_groups_that_pay_are_chosen_by_the_allocator(tmp_path: Path) -> None:
    # Half the inputs of W1 have weights a hundred times as large as the other half.
    proto = forecaster(64, 64)
    from onnx import numpy_helper

    stored = next(t for t in proto.graph.initializer if t.name == "W1")
    w = numpy_helper.to_array(stored).copy()
    w[:32] *= 100
    stored.CopyFrom(numpy_helper.from_array(w, "W1"))
    source = opened(tmp_path, proto)
    scores = scored(source, spec_of(), values(2, 64))
    served = [Serving(groups=groups, rows=False) for groups in ((), (32,))]
    plain, grouped = (
        plan_within(
            request_for(source, scores, "exact", (Tier.INT8, Tier.INT4, Tier.INT2), s), 8_000, PlanOptions()
        )
        for s in served
    )
    assert any(a.group == 32 for a in grouped.assignments)
    assert grouped.predicted_drift < plain.predicted_drift
