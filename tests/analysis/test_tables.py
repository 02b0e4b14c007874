"""The tables of the paper, each figure found independently on scores, plans and errors worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import linregress

from tests.rollouts import bed_of, forecaster, opened, scored, spec_of, values
from tqs_models.lorenz96 import files
from tqs_models.lorenz96.system import STEP
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.analysis.allocation import block_of, size_table, tier_table
from tqs_onnx.analysis.frontiers import gap_table
from tqs_onnx.analysis.growth import growth_of, linear_growth
from tqs_onnx.analysis.sensitivity import (
    agreement_table,
    concentration_table,
    cumulative,
    dead_table,
    gammas,
    role_table,
    spread_table,
    structure_table,
)
from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.pareto import Point, pareto_of
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind
from tqs_onnx.scoring.scores import Scores, Status
from tqs_onnx.verification.errors import errors_of
from tqs_onnx.verification.moments import compared
from tqs_passes.tier import DEFAULT_TIERS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("analysis"), forecaster())


@pytest.fixture(scope="module")
def scores(source) -> Scores:
    return scored(source, spec_of(), values(2, 16))


def known(scores: Scores, gamma: list[float | None]) -> Scores:
    """The scores with these γ_task; None marks a dead weight."""
    weights = tuple(
        w.model_copy(
            update={"gamma_task": g, "status": Status.DEAD if g is None else Status.ALIVE, "block": ""}
        )
        for w, g in zip(scores.weights, gamma, strict=True)
    )
    return scores.model_copy(update={"weights": weights})


def row(table, **wanted) -> dict[str, object]:
    rows = [dict(zip(table.columns, r, strict=True)) for r in table.rows]
    return next(r for r in rows if all(r[k] == v for k, v in wanted.items()))


def test_the_spread_is_in_nats_decades_and_as_a_factor(scores) -> None:
    found = row(spread_table({"a": known(scores, [1.0, 2.0, 3.0, 4.5, None])}))
    assert (found["n"], found["range (nats)"]) == (4, 3.5)
    assert found["decades"] == pytest.approx(3.5 / math.log(10))
    assert found["highest / lowest growth factor"] == pytest.approx(math.exp(3.5))


def test_dead_weights_are_counted_by_number_and_by_values(scores) -> None:
    given = known(scores, [None, 1.0, 2.0, 3.0, 4.0])
    sizes = [math.prod(w.shape) for w in given.weights]
    found = row(dead_table({"a": given}))
    assert (found["dead"], found["% of weights"], found["which"]) == (1, 20.0, given.weights[0].label)
    assert found["% of values"] == pytest.approx(100 * sizes[0] / sum(sizes))


def test_concentration_is_the_share_of_the_shift_in_the_top(scores) -> None:
    found = row(concentration_table({"a": known(scores, [0.0, 1.0, 2.0, 3.0, 4.0])}), run="a")
    # Shifts 4, 3, 2, 1, 0 sum to 10; the top half of five weights is two of them.
    assert (found["top 10 %"], found["top 50 %"]) == (40.0, 70.0)


def test_the_cumulative_curve_runs_from_nothing_to_everything(scores) -> None:
    x, y = cumulative(known(scores, [0.0, 1.0, 2.0, 3.0, 4.0]))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert y[1] == 0.4


def test_agreement_is_spearman_of_runs_of_one_model(source, scores) -> None:
    gauss = scored(source, spec_of(), values(2, 16), Probe(kind=ProbeKind.GAUSS, draws=2))
    found = row(agreement_table({"quant": scores, "gauss": gauss}))
    ranks = [np.argsort(np.argsort(gammas(s))) for s in (scores, gauss)]
    assert found["Spearman's ρ"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["they differ in"] == "probes"
    other = gauss.model_copy(update={"source_sha256": "0" * 64})
    assert agreement_table({"quant": scores, "other": other}).rows == ()


def test_structure_correlates_gamma_with_size_and_place(scores) -> None:
    given = known(scores, [5.0, 4.0, 3.0, 2.0, 1.0])
    assert row(structure_table({"a": given}), **{"γ against": "place in the graph"})[
        "Spearman's ρ"
    ] == pytest.approx(-1.0)


def test_a_block_is_as_large_as_all_its_weights(scores) -> None:
    """Blocks of 48 + 768, 768 and 16 + 16 values, by falling γ: only their sums fall, not their first weights."""
    blocks = {"b1": ("first", 3.0), "W2": ("first", 3.0), "W1": ("second", 2.0), "b2": ("third", 1.0)}
    blocks["decay"] = ("third", 1.0)
    weights = [
        w.model_copy(update={"block": blocks[w.weight][0], "gamma_task": blocks[w.weight][1]})
        for w in sorted(scores.weights, key=lambda w: list(blocks).index(w.weight))
    ]
    found = row(
        structure_table({"a": scores.model_copy(update={"weights": tuple(weights)})}),
        **{"γ against": "number of values"},
    )
    assert (found["n"], found["Spearman's ρ"]) == (3, pytest.approx(1.0))


def test_every_alive_weight_has_a_role(scores) -> None:
    table = role_table({"a": scores})
    assert sum(r[2] for r in table.rows) == len(gammas(scores))


@pytest.mark.parametrize(
    ("label", "block"),
    [("layers.3.attn.qkv.weight", "layers.3"), ("head.weight", "head"), ("W1", "W1"), ("a/b1/c", "a.b1")],
)
def test_a_block_ends_at_the_first_number(label: str, block: str) -> None:
    assert block_of(label) == block


def test_growth_is_the_slope_of_the_logarithm_with_its_interval() -> None:
    mae = np.exp(0.3 * np.arange(1, 11) + 0.05 * np.random.default_rng(1).standard_normal(10))
    found = growth_of(mae.tolist())
    fit = linregress(np.arange(1, 11), np.log(mae))
    # 2.306: Student's t for 8 degrees of freedom, 97.5 %.
    assert (found.rate, found.high - found.rate) == pytest.approx((fit.slope, 2.306 * fit.stderr), rel=1e-3)


def test_the_linear_range_is_the_later_half_of_the_small_errors() -> None:
    mae = [0.01 * 1.2**t for t in range(1, 31)]
    found = linear_growth(mae, sigma=1.0)
    small = sum(value < 0.2 for value in mae)
    assert (found.first, found.last) == (small // 2 + 1, small)
    assert found.rate == pytest.approx(math.log(1.2))
    assert linear_growth([1.0, 2.0, 4.0, 8.0], sigma=1.0) is None


def test_a_curve_of_two_steps_or_without_error_has_no_rate() -> None:
    assert growth_of([1.0, 2.0]) is None
    assert growth_of([0.0, 0.0, 0.0]) is None


def test_the_growth_of_the_demo_is_its_lyapunov_exponent() -> None:
    """The demo with one weight changed by 1e-3 of its norm, against itself: errors that stay small for 40 steps."""
    demo = files()
    source = open_source(demo.model)
    data = read_data(DataOptions(demo.rollout, demo.contexts, demo.evaluation), source)
    bed = bed_of(source, data.spec, data.evaluation, threads=2)
    weight = next(w for w in bed.weights if len(w.shape) > 1)
    theta = bed.exposed.values(weight)
    noise = np.random.default_rng(0).standard_normal(theta.shape)
    changed = (theta + 1e-3 * np.linalg.norm(theta) / np.linalg.norm(noise) * noise).astype(np.float32)
    streams = bed.exposed.pieces({}), bed.exposed.pieces({weight.name: changed})
    found = compared(*streams, data.spec, data.evaluation, truth=False)
    errors = errors_of(found, data.spec, data.evaluation)["x"].against_fp32
    rate = linear_growth(errors.typical_per_step, sigma=3.6)
    # 1.69 per time unit (models/tqs_models/lorenz96/card.md); 40 steps of 64 contexts leave about 10 %.
    assert rate.rate == pytest.approx(1.69 * STEP, rel=0.1)


def test_the_gap_of_two_frontiers_is_their_largest_over_equal_targets() -> None:
    def point(asked: float, drift: float, degradation: float) -> Point:
        return Point(
            name=f"C{asked}",
            compression_asked=asked,
            tiers="INT4",
            p_fp32=0.0,
            gamma_min=None,
            objective="energy",
            solver="mckp",
            allocate_s=0.0,
            drift_measured=drift,
            degradation=degradation,
        )

    a = pareto_of("s", [point(2, 0.1, 10.0), point(4, 0.2, 20.0), point(8, 9.0, 900.0)])
    b = pareto_of("s", [point(2, 0.1, 10.0), point(4, 0.1, 0.0)])
    found = row(gap_table({"a": a, "b": b}))
    assert found["points"] == 2
    assert found["largest gap of MAE (%)"] == pytest.approx(20.0)
    assert found["largest ratio of drift"] == pytest.approx(2.0)


def test_sizes_and_tiers_add_up(source, scores) -> None:
    plan = plan_within(request_for(source, scores, "fast", DEFAULT_TIERS), 2600, PlanOptions())
    tiers = tier_table({"a": plan}, {"a": scores})
    assert sum(r[5] for r in tiers.rows) == plan.weight_bytes
    found = row(size_table({"a": plan}, {}))
    assert found["bytes of the file"] == plan.n_bytes
    assert found["file C"] == plan.source_bytes / plan.n_bytes
