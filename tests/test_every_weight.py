"""Every kind of weight at every tier: what the runtime decodes, and computes with, is what the plan says."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Literal

import pytest

from tests import kinds
from tqs_onnx.emit import emit
from tqs_onnx.source import Source, open_source
from tqs_onnx.verify.verify import Bench, Subject, Verification, verify
from tqs_passes.candidates import kitchen_of
from tqs_passes.encode.weight import Form
from tqs_passes.forms import integer_form, scale_axes
from tqs_passes.grid import grids_for
from tqs_passes.plan import Assignment, Plan
from tqs_passes.tier import KEEP_TIER, Tier
from tqs_passes.weights import Weight

Profile = Literal["fast", "exact"]
STORED = [t for t in Tier if t.bits <= 16]


@functools.cache
def source() -> Source:
    return open_source(kinds.write(Path(tempfile.mkdtemp(prefix="tqs-every-"))))


def assignment(weight: Weight, tier: Tier, profile: Profile, index: int) -> Assignment:
    """Return a way to store a weight at a tier: over the weights, every axis and grid on offer comes up."""
    kitchen = kitchen_of(source().lifted, profile)
    common = {
        "weight": weight.name,
        "label": weight.label,
        "shape": weight.shape,
        "dtype": weight.dtype,
        "n_bytes": 0,
        "error_energy": 0.0,
    }
    if tier.bits >= KEEP_TIER[weight.dtype].bits:
        return Assignment(tier=KEEP_TIER[weight.dtype], form=Form.KEEP, rounding="keep", **common)
    if not tier.is_integer:
        return Assignment(tier=tier, form=Form.CAST, rounding="cast", **common)
    form = integer_form(weight, profile, kitchen.opset, kitchen.gemms)
    axes, grids = scale_axes(weight, tier, form), grids_for(tier.bits)
    return Assignment(
        tier=tier,
        grid=grids[index % len(grids)],
        axis=axes[index % len(axes)],
        half_scales=index % 3 == 0,
        form=form,
        rounding="mse",
        **common,
    )


def plan_at(tier: Tier, profile: Profile) -> Plan:
    chosen = [assignment(w, tier, profile, i) for i, w in enumerate(source().survey.weights)]
    return Plan(
        source_sha256=source().sha256,
        profile=profile,
        assignments=tuple(chosen),
        n_bytes=0,
        source_bytes=source().facts.n_bytes,
    )


@functools.cache
def verified(tier: Tier, profile: Profile) -> tuple[Plan, Verification]:
    plan = plan_at(tier, profile)
    path = source().path.with_name(f"{tier}.{profile}.onnx")
    emit(source().lifted, plan, path)
    subject = Subject(source().path, path, source().lifted, source().survey, plan, {})
    return plan, verify(subject, Bench(kinds.spec(), kinds.contexts(), {"y": 1.0, "z": 1.0}, threads=1))


def test_the_model_has_every_kind_of_weight() -> None:
    readers = {(r.op_type, r.input_index) for w in source().survey.weights for r in w.readers}
    expected = {("MatMul", 0), ("MatMul", 1), ("Gemm", 0), ("Gemm", 1), ("Gemm", 2), ("Conv", 1), ("Conv", 2)}
    expected |= {("ConvTranspose", 1), ("Gather", 0), ("Einsum", 1), ("Add", 1), ("Mul", 1)}
    expected |= {(op, i) for op in ("LSTM", "GRU") for i in (1, 2, 3)}
    assert expected <= readers
    assert {w.origin.value for w in source().survey.weights} == {
        "initializer",
        "constant",
        "body",
        "function",
    }
    assert {w.dtype for w in source().survey.weights} == {"float32", "float16", "bfloat16", "float64"}
    assert len(source().survey.weights) == len(kinds.SHAPES) + 2


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("tier", STORED)
def test_the_runtime_decodes_every_weight_bit_for_bit(tier: Tier, profile: Profile) -> None:
    plan, verification = verified(tier, profile)
    rewritten = [a for a in plan.assignments if a.form is not Form.KEEP]
    assert verification.n_decoded == len(rewritten) >= len(plan.assignments) - 3  # FP16 and BF16 sources keep


@pytest.mark.parametrize("tier", STORED)
def test_under_exact_the_rollout_is_the_simulated_one(tier: Tier) -> None:
    # Float32 sums in another order, values of order 1, three steps: at most 1e-8 measured.
    assert verified(tier, "exact")[1].runtime_gap < 1e-6


@pytest.mark.parametrize("tier", STORED)
def test_under_fast_the_runtime_adds_what_8_bit_activations_add(tier: Tier) -> None:
    # 5e-3 a fused MatMul, a few of this model's, in units of 1: 3.4e-3 measured.
    assert verified(tier, "fast")[1].runtime_gap < 1e-2


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_fewer_bits_drift_further(profile: Profile) -> None:
    drifts = [verified(t, profile)[1].drift.total for t in (Tier.FP16, Tier.INT8, Tier.INT4, Tier.INT1)]
    assert drifts == sorted(drifts)
    assert 0 < drifts[0] < 1e-3
