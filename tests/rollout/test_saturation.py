"""Processors whose integer products saturate, and the weights that are offered there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tests.models import draws
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.tier_set import TierRule, TierSet
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs import offering
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.rollout.session import open_session
from tqs_passes.encode.weight import ROUNDED
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.targets import Serving, ServingTarget
from tqs_passes.tier import Tier

DEPTH = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[b, 32] x) => (float[b, 32] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(draws(1, 32, 32), "w"))
    path = tmp_path_factory.mktemp("saturation") / "m.onnx"
    onnx.save(proto, path)
    return open_source(path)


def widths(source: Source, profile: Profile, target: ServingTarget = ServingTarget.ORT_CPU) -> set[int]:
    """Return the widths of weights that are offered to readers that round their inputs."""
    options = QuantizeOptions(plan=PlanOptions(speedup=1.5), profile=profile, serving=Serving(target))
    menus = offering.offer(source, replace(options, run=replace(options.run, provider="cpu"))).menus
    found = (c.assignment for m in menus for c in m.candidates)
    return {max(a.widths) for a in found if a.form in ROUNDED}


@pytest.mark.parametrize("profile", ["fast", "qdq"])
def test_where_products_saturate_eight_bits_are_not_offered(
    source: Source, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "saturates", lambda: True)
    assert max(widths(source, profile)) == 7
    monkeypatch.setattr(offering, "saturates", lambda: False)
    assert max(widths(source, profile)) == 8


def test_other_targets_keep_eight_bits(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offering, "saturates", lambda: True)
    assert widths(source, "qdq", ServingTarget.TENSORRT) == {8}


@pytest.mark.parametrize("profile", ["small", "fast", "qdq"])
@pytest.mark.parametrize(
    "tiers",
    [
        TierSet((Tier.FP32, Tier.INT8)),
        TierSet(pins=(TierRule("*", (Tier.INT8,)),)),
        TierSet(bans=(TierRule("*", (Tier.INT7,)),)),
    ],
)
def test_seven_bits_are_not_offered_where_the_tiers_leave_them_out(
    source: Source, profile: Profile, tiers: TierSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offering, "saturates", lambda: False)
    options = QuantizeOptions(plan=PlanOptions(speedup=1.5), profile=profile, tiers=tiers)
    found = [c.assignment for m in offering.offer(source, options).menus for c in m.candidates]
    assert any(a.form in ROUNDED and a.widths == (8,) for a in found)
    assert not any(7 in a.widths for a in found)


@pytest.mark.parametrize("level", [63, -64])
def test_products_with_seven_bits_are_exact_on_this_processor(level: int, tmp_path: Path) -> None:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g (uint8[m, {DEPTH}] x) => (int32[m, 16] y)'
        " { y = MatMulInteger(x, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.full((DEPTH, 16), level, np.int8), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    y = session.run({"x": session.value(np.full((4, DEPTH), 255, np.uint8))})["y"].numpy()
    assert np.all(y == 255 * level * DEPTH)
