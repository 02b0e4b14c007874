"""Scales of a grouped ConvTranspose belong to its output channels: pairs of a group and an index along axis 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests.models import info, model_of, run, tensor
from tests.rollouts import Floats, values
from tqs_onnx.emission import rewritten
from tqs_passes.files.model import Model
from tqs_passes.grids.grid import Grid, as_groups, from_groups, grids_for
from tqs_passes.grids.nearest import quantize
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.candidates import Candidate, kitchen_of, menus
from tqs_passes.plan.plan import Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import Tier

T = 40


def turned(w: Floats, group: int, opset: int = 17) -> Model:
    """y = ConvTranspose(x, w), x [2, C, T]."""
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", group=group)
    out = [2, group * w.shape[1], T + w.shape[2] - 1]
    return model_of(
        [node], [info("x", [2, w.shape[0], T])], [info("y", out)], [tensor("w", w)], opset, Path()
    )


def expected(x: Floats, w: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    """Return ConvTranspose in one dimension by its definition: y[g·m + j, t + k] += x[c, t] · w[c, j, k]."""
    c, m, k = w.shape
    y = np.zeros((len(x), group * m, x.shape[2] + k - 1))
    for i in range(c):
        g = i // (c // group)
        for j in range(m):
            for tap in range(k):
                y[:, g * m + j, tap : tap + x.shape[2]] += x[:, i].astype(np.float64) * w[i, j, tap]
    return y


def best(model: Model, tier: Tier) -> Candidate:
    lifted, survey = find_weights(model)
    (menu,) = menus(kitchen_of(lifted, "exact", Serving(rows=False)), survey.weights, (tier,))
    return min(
        (c for c in menu.candidates if c.assignment.tier is tier), key=lambda c: c.assignment.error_energy
    )


def relative_error(model: Model, candidate: Candidate, w: Floats, group: int) -> float:
    """Return the mean over output channels of the relative error of the emitted file's output."""
    plan = Plan(
        source_sha256="0" * 64,
        profile="exact",
        assignments=(candidate.assignment,),
        n_bytes=0,
        source_bytes=1,
    )
    lifted, _ = find_weights(model)
    x = values(2, w.shape[0], T, seed=7)
    made = run(rewritten(lifted, plan), {"x": x})["y"]
    right = expected(x, w.astype(np.float64), group)
    np.testing.assert_allclose(run(model, {"x": x})["y"], right, rtol=0, atol=1e-4 * np.abs(right).max())
    axes = (0, 2)
    return float(np.mean(np.sqrt(np.sum((made - right) ** 2, axes) / np.sum(right**2, axes))))


def test_a_depthwise_kernel_has_a_scale_for_each_of_its_channels() -> None:
    w = values(32, 1, 31, seed=1) * np.geomspace(1, 1e4, 32, dtype=np.float32)[:, None, None]
    found = best(turned(w, 32), Tier.INT8)
    assert (found.assignment.axis, found.assignment.group) == (0, 0)
    # Levels are max|w| / 127 ≈ 2.2 σ / 127 apart: an error of 2.2 / 127 / √12 = 0.005 at most per value.
    assert relative_error(turned(w, 32), found, w, 32) < 0.006
    shared = best_shared(turned(w, 32))
    assert relative_error(turned(w, 32), shared, w, 32) > 0.2


def best_shared(model: Model) -> Candidate:
    """The candidate with one scale for the whole weight."""
    lifted, survey = find_weights(model)
    (menu,) = menus(kitchen_of(lifted, "exact", Serving(rows=False)), survey.weights, (Tier.INT8,))
    return next(c for c in menu.candidates if c.assignment.tier is Tier.INT8 and c.assignment.axis is None)


@pytest.mark.parametrize("tier", [Tier.INT8, Tier.INT4, Tier.INT3])
@pytest.mark.parametrize("opset", [11, 17])
def test_each_pair_of_group_and_output_channel_has_a_scale(tier: Tier, opset: int) -> None:
    # Two groups of eight input and four output channels, whose sizes differ by group and by channel.
    sizes = np.geomspace(1, 1e4, 8, dtype=np.float32).reshape(2, 1, 4, 1)
    w = (values(2, 8, 4, 15, seed=2) * sizes).reshape(16, 4, 15)
    model = turned(w, 2, opset)
    found = best(model, tier)
    assert (found.assignment.axis, found.assignment.group) == (1, 8)
    # 120 values of a channel reach 2.7 σ: steps of 2.7 / 127 σ at 8 bits, 16 times that at 4, 42 times at 3.
    bound = {Tier.INT8: 0.008, Tier.INT4: 0.13, Tier.INT3: 0.25}[tier]
    assert relative_error(model, found, w, 2) < bound


def test_groups_are_rounded_as_if_they_were_channels() -> None:
    w = values(12, 3, 5, seed=3)
    for bits in range(1, 9):
        for grid in grids_for(bits):
            grouped = quantize(w, bits, 1, grid, group=4)
            parts = as_groups(w, 1, 4)
            assert parts.shape == (3 * 3, 4 * 5)
            np.testing.assert_array_equal(parts[4], w[4:8, 1].reshape(-1))  # group 1, channel 1
            alone = quantize(parts, bits, 0, grid)
            np.testing.assert_array_equal(as_groups(grouped.decode(), 1, 4), alone.decode())
            np.testing.assert_array_equal(from_groups(alone.levels, w.shape, 1, 4), grouped.levels)
    assert quantize(w, 8, 1, Grid.SIGNED, group=4).scales.shape == (3, 1, 3, 1)


def test_the_bytes_of_grouped_scales_are_those_of_the_file() -> None:
    w = values(16, 4, 15, seed=2) * np.geomspace(1, 1e4, 16, dtype=np.float32)[:, None, None]
    model = turned(w, 2)
    lifted, _ = find_weights(model)
    sizes = []
    for tier in (Tier.INT8, Tier.INT4):
        found = best(model, tier)
        plan = Plan(
            source_sha256="0" * 64,
            profile="exact",
            assignments=(found.assignment,),
            n_bytes=0,
            source_bytes=1,
        )
        graph = rewritten(lifted, plan).proto.graph.ByteSize()
        sizes.append(graph - found.assignment.n_bytes - sum(found.shared.values()))
        reference = reference_weight(found.assignment, w)
        assert reference.shape == w.shape
    assert sizes[0] == sizes[1]  # the graph without the weight


def test_a_convolution_without_groups_keeps_its_axis() -> None:
    (weight,) = find_weights(turned(values(8, 4, 5), 1))[1].weights
    assert (weight.channel_axis, weight.groups) == (1, 1)
    onnx.checker.check_model(turned(values(8, 4, 5), 1).proto)
