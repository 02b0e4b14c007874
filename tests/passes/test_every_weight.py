"""Every kind of weight at every tier: what the runtime decodes, and computes with, is what the plan says."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest

from tests import kinds
from tests.rollouts import judging
from tqs_onnx.allocation.request import prepared_source
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.verify import Verification, verify
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.grids.grid import Grid, grids_for
from tqs_passes.grids.row_tiers import nearest_tier
from tqs_passes.plan.candidates import Kitchen, kitchen_of
from tqs_passes.plan.forms import LEAST_VALUES, Profile, integer_form, scale_axes
from tqs_passes.plan.plan import Assignment, Compute, Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import KEEP_TIER, Tier
from tqs_passes.weights import Weight

STORED = [t for t in Tier if t.bits <= 16]
#: The 8 × 8 blocks of this model in float16: the largest value is of order 1, the rollout has three steps.
HALF = Compute(dtype="float16")


@dataclass(frozen=True)
class Way:
    """One way to store every weight of the model."""

    tier: Tier
    profile: Profile = "exact"
    encoding: Encoding = Encoding.PLANES
    opset: int | None = None
    compute: Compute | None = None
    rows: bool = False

    @property
    def serving(self) -> Serving:
        return Serving(encoding=self.encoding, opset=self.opset, compute=self.compute, constants="keep")


EXACT = [Way(t) for t in STORED]
FAST = [Way(t, "fast") for t in STORED]
SMALL = [Way(t, "small") for t in STORED if t.is_integer]
NATIVE = [
    Way(t, p, Encoding.NATIVE, 21 if t is Tier.INT4 else None)
    for t in (Tier.INT8, Tier.INT4)
    for p in ("exact", "fast")
]
HALVED = [Way(t, compute=HALF) for t in (Tier.FP16, Tier.INT8, Tier.INT5, Tier.INT4, Tier.INT1)]


def shown(way: Way) -> str:
    parts = (way.tier, way.profile, way.encoding, way.compute and "computed in float16")
    return " ".join(str(p) for p in parts if p)


@functools.cache
def source() -> Source:
    return open_source(kinds.write(Path(tempfile.mkdtemp(prefix="tqs-every-"))))


@functools.cache
def kitchen_for(way: Way) -> Kitchen:
    return kitchen_of(prepared_source(source(), way.serving).model, way.profile, way.serving)


def assignment(weight: Weight, way: Way, dtype: str, index: int) -> Assignment:
    """Return a way to store a weight at a tier: over the weights, every axis and grid on offer comes up."""
    tier = way.tier
    common = {
        "weight": weight.name,
        "label": weight.label,
        "shape": weight.shape,
        "dtype": dtype,
        "n_bytes": 0,
        "error_energy": 0.0,
    }
    if tier.bits >= KEEP_TIER[dtype].bits:
        return Assignment(tier=KEEP_TIER[dtype], form=Form.KEEP, rounding="keep", **common)
    if not tier.is_integer:
        return Assignment(tier=tier, form=Form.CAST, rounding="cast", **common)
    kitchen = kitchen_for(way)
    axes = scale_axes(weight, tier)
    grids = (Grid.SIGNED,) if way.encoding is Encoding.NATIVE else grids_for(tier.bits)
    axis, grid = axes[index % len(axes)], grids[index % len(grids)]
    with mock.patch.dict(LEAST_VALUES, clear=True):  # every form, however small the weight
        form = integer_form(kitchen.setting, replace(weight, dtype=dtype), tier, grid, axis)
    return Assignment(
        tier=tier,
        grid=grid,
        axis=axis,
        half_scales=index % 3 == 0,
        form=form,
        encoding=way.encoding,
        rounding="mse",
        **common,
    )


@functools.cache
def verified(way: Way) -> tuple[Plan, Verification]:
    computed = prepared_source(source(), way.serving).computed
    chosen = [
        assignment(w, way, computed.get(w.name, w.dtype), i) for i, w in enumerate(source().survey.weights)
    ]
    plan = Plan(
        source_sha256=source().sha256,
        profile=way.profile,
        assignments=tuple(by_rows(a) if way.rows else a for a in chosen),
        n_bytes=0,
        source_bytes=source().facts.n_bytes,
        opset=way.opset,
        compute=way.compute,
    )
    path = source().path.with_name("emitted.onnx")
    emit(source().lifted, plan, path)
    subject = Subject(source().path, path, source().lifted, source().survey, plan, {})
    return plan, verify(subject, judging(subject, kinds.spec(), kinds.contexts(), {"y": 1.0, "z": 1.0}))


def test_the_model_has_every_kind_of_weight() -> None:
    readers = {(r.op_type, r.input_index) for w in source().survey.weights for r in w.readers}
    expected = {("MatMul", 0), ("MatMul", 1), ("Gemm", 0), ("Gemm", 1), ("Gemm", 2), ("Conv", 1), ("Conv", 2)}
    expected |= {("ConvTranspose", 1), ("Gather", 0), ("Einsum", 1), ("Add", 1), ("Mul", 1)}
    expected |= {(op, i) for op in ("LSTM", "GRU", "RNN") for i in (1, 2, 3)}
    assert expected <= readers
    through = {op for w in source().survey.weights for r in w.readers for op in r.through}
    assert {"Transpose", "Reshape", "Concat", "Slice", "Expand", "Cast"} <= through
    assert {w.origin.value for w in source().survey.weights} == {
        "initializer",
        "constant",
        "body",
        "function",
    }
    assert {w.dtype for w in source().survey.weights} == {"float32", "float16", "bfloat16", "float64"}
    assert len(source().survey.weights) == len(kinds.SHAPES) + 2


@pytest.mark.parametrize("way", [*EXACT, *FAST, *SMALL, *NATIVE], ids=shown)
def test_the_runtime_decodes_every_weight_bit_for_bit(way: Way) -> None:
    plan, verification = verified(way)
    rewritten = [a for a in plan.assignments if a.form is not Form.KEEP]
    assert verification.n_decoded == len(rewritten) >= len(plan.assignments) - 3  # FP16 and BF16 sources keep


@pytest.mark.parametrize("way", [*EXACT, *(w for w in NATIVE if w.profile == "exact")], ids=shown)
def test_under_exact_the_rollout_is_the_simulated_one(way: Way) -> None:
    # Float32 sums in another order, values of order 1, three steps: at most 1e-8 measured.
    assert verified(way)[1].runtime_gap < 1e-6


@pytest.mark.parametrize("way", [*FAST, *SMALL, *(w for w in NATIVE if w.profile == "fast")], ids=shown)
def test_elsewhere_the_runtime_adds_what_8_bit_activations_add(way: Way) -> None:
    # 5e-3 a fused MatMul, a few of this model's, in units of 1: 3.4e-3 measured.
    assert verified(way)[1].runtime_gap < 1e-2


@pytest.mark.parametrize("way", HALVED, ids=shown)
def test_blocks_in_float16_decode_bit_for_bit_and_add_their_rounding(way: Way) -> None:
    plan, verification = verified(way)
    halved = [a for a in plan.assignments if a.dtype == "float16"]
    assert len(halved) > len(plan.assignments) / 2
    assert verification.n_decoded == sum(a.form is not Form.KEEP for a in plan.assignments)
    assert 0 < verification.runtime_gap < 5e-3  # 2^-11 a value of order 1, a few operators deep, three steps


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_every_weight_can_have_row_tiers(profile: Profile) -> None:
    plan, verification = verified(Way(Tier.INT3, profile, rows=True))
    assert sum(bool(a.rows) for a in plan.assignments) > 8
    assert verification.n_decoded == len([a for a in plan.assignments if a.form is not Form.KEEP])
    # the bounds of a single width, above
    assert verification.runtime_gap < (1e-6 if profile == "exact" else 1e-2)


def by_rows(a: Assignment) -> Assignment:
    """Return the assignment with 2, 4 and 3 bits for the channels in turn, where it has channels."""
    if not a.tier.is_integer or a.axis is None or a.shape[a.axis] < 2:
        return a
    rows = ("243" * a.shape[a.axis])[: a.shape[a.axis]]
    return Assignment.model_validate(a.model_dump() | {"rows": rows, "tier": nearest_tier(rows)})


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_fewer_bits_drift_further(profile: Profile) -> None:
    tiers = (Tier.FP16, Tier.INT8, Tier.INT4, Tier.INT1)
    drifts = [verified(Way(t, profile))[1].drift.total for t in tiers]
    assert drifts == sorted(drifts)
    assert 0 < drifts[0] < 1e-3
