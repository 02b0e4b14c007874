"""However weights are injected, the same is measured; and the choice is a function of the job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import forecaster, linear, opened, scored, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import Rebuilt, exposable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.scoring.plan.perturbation import Perturbation
from tqs_onnx.scoring.plan.probe import Probe, perturbed
from tqs_onnx.scoring.plan.strategy import Shape, Strategy, choose, grouped
from tqs_passes.grids.grid import rtn
from tqs_passes.weights import Origin, Reader, Weight

SHAPE = Shape(n_rollouts=1, steps=1, chunks=1, chunk=1, nodes=100, provider="cpu")


def _matrix(name: str, n_values: int) -> Weight:
    readers = (Reader("MatMul", "", name, 1),)
    return Weight(name, name, (n_values,), "float32", Origin.INITIALIZER, readers, None, ("y",))


MATRICES = tuple(Perturbation(f"w{i}", (_matrix(f"w{i}", 500_000),)) for i in range(40))


@pytest.mark.parametrize("strategy", [Strategy("expose", 2), Strategy("expose", 5), Strategy("rebuild", 1)])
def test_every_strategy_gives_the_scores_of_one_session(tmp_path: Path, strategy: Strategy) -> None:
    source = opened(tmp_path, forecaster())
    one = scored(source, spec_of(), values(3, 16), strategy=Strategy("expose", 1))
    other = scored(source, spec_of(), values(3, 16), strategy=strategy)
    # another session may fuse otherwise: float32 rounding, amplified over four steps
    for a, b in zip(one.weights, other.weights, strict=True):
        assert a.gamma_task == pytest.approx(b.gamma_task, abs=1e-4)


def test_a_rebuilt_session_sees_the_weight_that_was_replaced(tmp_path: Path) -> None:
    matrix = np.diag(np.array([0.5, 2.0], np.float32)) + np.float32(0.25)
    source = opened(tmp_path, linear(matrix))
    x = np.ones((1, 2), np.float32)
    made = Rebuilt(
        exposable(source.lifted, source.survey.weights), spec_of(1), Contexts({"x": x}, {}), RunOptions()
    )
    held = made.hold()
    nominal = next(made.kept_pieces(held))
    moved = made.prepare({"A": 2 * matrix}).squares(held).outputs["y"]
    assert moved.tolist() == [[[float(np.square(x @ matrix).sum())]]]  # sums of powers of two: exact
    assert nominal.outputs["y"][0, 0].tolist() == (x @ matrix)[0].tolist()
    assert not made.prepare({}).squares(held).outputs["y"].any()


def test_short_rollouts_share_sessions_and_long_ones_are_rebuilt() -> None:
    assert choose(MATRICES, SHAPE).how == "expose"
    assert choose(MATRICES, replace(SHAPE, steps=32)) == Strategy("rebuild", 1)


def test_more_sessions_pay_as_rollouts_get_more() -> None:
    few, many = choose(MATRICES, SHAPE), choose(MATRICES, replace(SHAPE, n_rollouts=4))
    assert 1 <= few.groups < many.groups


def test_on_a_gpu_everything_is_exposed_in_one_session() -> None:
    assert choose(MATRICES, replace(SHAPE, steps=32, provider="cuda")) == Strategy("expose", 1)


def test_a_big_model_is_never_held_twice() -> None:
    big = tuple(Perturbation(f"w{i}", (_matrix(f"w{i}", 20_000_000),)) for i in range(10))
    assert choose(big, replace(SHAPE, steps=32)) == Strategy("expose", 1)


def test_a_weight_of_many_blocks_is_rounded_as_a_whole() -> None:
    theta = values(300, 500)
    moved, delta_sq = perturbed(theta, Probe(bits=4), "w", 0, None)
    expected = rtn(theta, 4, None)
    assert np.array_equal(moved, expected)
    # float64 sums in another order
    assert delta_sq == pytest.approx(float(np.sum((expected.astype(float) - theta) ** 2)), rel=1e-12)


def test_groups_hold_about_equal_bytes_in_the_order_given() -> None:
    groups = grouped(MATRICES, 4)
    assert [len(g) for g in groups] == [10, 10, 10, 10]
    assert [t for g in groups for t in g] == list(MATRICES)


def test_no_target_is_lost_where_one_is_bigger_than_a_share() -> None:
    uneven = (Perturbation("big", (_matrix("big", 10_000_000),)), *MATRICES[:5])
    assert sorted(t.name for g in grouped(uneven, 3) for t in g) == sorted(t.name for t in uneven)


def test_what_lies_before_is_kept_for_short_rollouts_only() -> None:
    assert choose(MATRICES, replace(SHAPE, chunk=16)).prefix
    assert not choose(MATRICES, replace(SHAPE, chunk=16, steps=5)).prefix
