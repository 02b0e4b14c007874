"""Targets: candidates a target cannot serve are not offered, and a plan it cannot serve is refused with the reasons."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests import kinds
from tests.rollouts import forecaster, judging, opened, scored, spec_of, values
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import prepared_source, request_for
from tqs_onnx.allocation.servable import require_served
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit, rewritten
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import verify
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.candidates import kitchen_of, menus
from tqs_passes.plan.forms import LEAST_VALUES
from tqs_passes.plan.plan import Assignment, Plan, ServingTarget
from tqs_passes.plan.targets import Serving, refusal, refusals
from tqs_passes.tier import DEFAULT_TIERS, Tier

TENSORRT = Serving(target=ServingTarget.TENSORRT)


@pytest.fixture(autouse=True)
def fused_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fast` write DequantizeLinear for the small matrices of these tests as well."""
    monkeypatch.setitem(LEAST_VALUES, ("fast", Form.DEQUANTIZE), 0)


@functools.cache
def source() -> Source:
    return open_source(kinds.write(Path(tempfile.mkdtemp(prefix="tqs-targets-"))))


@functools.cache
def offers(serving: Serving, opset: int | None = None) -> dict[str, list[Assignment]]:
    """Return what every weight of the model of every kind is offered."""
    ready = prepared_source(source(), serving).model
    listed = menus(kitchen_of(ready, "fast", serving), source().survey.weights, DEFAULT_TIERS)
    return {m.weight.name: [c.assignment for c in m.candidates] for m in listed}


def integers(found: dict[str, list[Assignment]]) -> list[Assignment]:
    return [a for row in found.values() for a in row if a.tier.is_integer]


def big(serving: Serving, folder: Path) -> tuple[Source, Request]:
    """Return a forecaster whose matrices are large enough for integer tiers to pay, and its request."""
    opened_ = opened(folder, forecaster(48, 96))
    scores = scored(opened_, spec_of(), values(2, 48))
    return opened_, request_for(opened_, scores, "fast", DEFAULT_TIERS, serving)


def test_onnxruntime_is_offered_every_tier_and_no_native_int2(tmp_path: Path) -> None:
    _, request = big(Serving(), tmp_path)
    tiers = {c.assignment.tier for m in request.menus for c in m.candidates}
    assert {Tier.INT1, Tier.INT3, Tier.INT8, Tier.FP16} <= tiers
    _, native = big(Serving(encoding=Encoding.NATIVE, opset=21), tmp_path)
    found = [c.assignment for m in native.menus for c in m.candidates if c.assignment.tier.is_integer]
    assert {a.tier for a in found} == {Tier.INT8, Tier.INT4}
    assert {a.encoding for a in found} == {Encoding.NATIVE}


def test_tensorrt_is_offered_signed_native_int8_only_below_opset_21(tmp_path: Path) -> None:
    _, request = big(TENSORRT, tmp_path)
    found = [c.assignment for m in request.menus for c in m.candidates if c.assignment.tier.is_integer]
    assert {(a.tier, a.grid, a.form, a.encoding, a.half_scales) for a in found} == {
        (Tier.INT8, Grid.SIGNED, Form.DEQUANTIZE, Encoding.NATIVE, False)
    }


def test_portable_is_offered_no_dequantizelinear(tmp_path: Path) -> None:
    _, request = big(Serving(target=ServingTarget.PORTABLE), tmp_path)
    found = [c.assignment for m in request.menus for c in m.candidates if c.assignment.tier.is_integer]
    assert {a.form for a in found} == {Form.CAST_MUL}
    assert Tier.INT3 in {a.tier for a in found}


def test_tensorrt_gets_no_integers_for_weights_without_a_quantised_kernel() -> None:
    readers = {a.weight for a in integers(offers(TENSORRT))}
    others = {"w_emb", "w_tied", "w_lw", "w_ein", "w_add", "w_mul", "#67/then_branch/w_if"}
    assert readers.isdisjoint(others)


CASES = [
    ({"tier": Tier.INT3}, 21, "no native type"),
    ({"tier": Tier.INT3, "encoding": Encoding.PLANES}, 21, "no INT3"),
    ({"encoding": Encoding.PLANES}, 21, "native types"),
    ({"form": Form.CAST_MUL}, 21, "native types"),
    ({"tier": Tier.INT4}, 17, "needs opset 21"),
    ({"tier": Tier.INT4, "shape": (8, 5)}, 21, "last dimension"),
    ({"tier": Tier.INT4, "grid": Grid.MIDRISE}, 21, "no midrise levels"),
    ({"dtype": "float16"}, 21, "float32 weights"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "opset", "reason"), CASES)
def test_tensorrt_refuses_with_the_reason(change: dict[str, object], opset: int, reason: str) -> None:
    weight = next(w for w in source().survey.weights if w.name == "w_right2")
    served = Assignment(
        weight="w_right2", label="w_right2", shape=(8, 6), dtype="float32", tier=Tier.INT8, grid=Grid.SIGNED,
        form=Form.DEQUANTIZE, encoding=Encoding.NATIVE, rounding="mse", n_bytes=0, error_energy=0.0,
    )  # fmt: skip
    assert refusal(served, weight, ServingTarget.TENSORRT, opset) is None
    why = refusal(served.model_copy(update=change), weight, ServingTarget.TENSORRT, opset)
    assert why is not None
    assert reason in why


def test_a_plan_for_one_runtime_is_refused_for_another_with_every_weight_named(tmp_path: Path) -> None:
    opened_, request = big(Serving(), tmp_path)
    plan = plan_within(request, request.size.source_bytes // 4, PlanOptions())
    found = refusals(plan, opened_.survey.weights, ServingTarget.TENSORRT, 17)
    assert {label for label, _ in found} == {a.label for a in plan.assignments if a.tier.is_integer}
    with pytest.raises(InputError, match=r"tensorrt cannot serve 3 of 5 weights: W1: TensorRT has no INT"):
        require_served(plan, opened_, ServingTarget.TENSORRT)
    require_served(plan, opened_, ServingTarget.ORT_CUDA)


def test_the_command_refuses_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened_, request = big(Serving(), tmp_path)
    plan = plan_within(request, request.size.source_bytes // 4, PlanOptions())
    (tmp_path / "plan.json").write_text(plan.to_json())
    arguments = ["emit", str(opened_.path), "--plan", str(tmp_path / "plan.json"), "--target", "portable"]
    assert main([*arguments, "--out", str(tmp_path / "o.onnx")]) == 2
    assert "portable cannot serve" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


SERVINGS = [
    Serving(),
    Serving(constants="keep"),
    TENSORRT,
    Serving(target=ServingTarget.PORTABLE),
    Serving(encoding=Encoding.NATIVE, opset=21),
    Serving(target=ServingTarget.TENSORRT, opset=21),
]


@pytest.mark.parametrize("serving", SERVINGS, ids=str)
def test_the_file_has_the_bytes_planned_and_verifies(serving: Serving, tmp_path: Path) -> None:
    opened_, request = big(serving, tmp_path)
    plan = plan_within(request, request.size.source_bytes * 10 // 35, PlanOptions())
    assert (plan.target, plan.opset) == (serving.target, serving.opset)
    emit(opened_.lifted, plan, tmp_path / "o.onnx")
    assert file_facts(tmp_path / "o.onnx").n_bytes == plan.n_bytes
    subject = Subject(opened_.path, tmp_path / "o.onnx", opened_.lifted, opened_.survey, plan, {})
    contexts = kinds.Contexts({"x": values(2, 48, seed=7)}, {})
    assert verify(subject, judging(subject, spec_of(), contexts)).n_decoded >= 2


def test_a_plan_round_trips_with_its_target() -> None:
    plan = Plan(
        source_sha256="0", profile="fast", assignments=(), n_bytes=1, source_bytes=2,
        target=ServingTarget.TENSORRT, constants="small", opset=21,
    )  # fmt: skip
    assert Plan.model_validate_json(plan.to_json()) == plan


def test_conversion_happens_only_when_asked_for(tmp_path: Path) -> None:
    opened_, request = big(Serving(), tmp_path)
    plan = plan_within(request, request.size.source_bytes // 3, PlanOptions())
    assert rewritten(opened_.lifted, plan).proto.opset_import == opened_.lifted.proto.opset_import
    converted = rewritten(opened_.lifted, plan.model_copy(update={"opset": 19})).proto
    assert [(o.domain, o.version) for o in converted.opset_import] == [("", 19)]


def test_an_opset_without_a_way_is_refused() -> None:
    plan = Plan(source_sha256="0", profile="fast", assignments=(), n_bytes=1, source_bytes=2, opset=99)
    with pytest.raises(InputError, match="cannot be converted to opset 99"):
        rewritten(source().lifted, plan)
    assert np.isfinite(plan.n_bytes)
