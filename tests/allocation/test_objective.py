"""The costs of each objective, by hand."""

import math

import numpy as np
import pytest

from tqs_onnx.allocation.objective import Objective, costs
from tqs_passes.errors import InputError

BITS = np.array([2.0, 4.0])
ENERGY = [np.array([3.0, 1.0]), np.array([5.0, 2.0]), np.array([4.0, 0.0])]
AMPLIFICATION = np.array([10.0, 0.0, 2.0])
GAMMA = np.array([0.5, -math.inf, -0.25])


def rows(objective: Objective, **changes: object) -> list[list[float]]:
    given = {"amplification": AMPLIFICATION, "gamma": GAMMA, "error_energy": ENERGY, "bits": BITS} | changes
    return [row.tolist() for row in costs(objective, **given)]


def test_energy_is_amplification_times_rounding_error() -> None:
    assert rows(Objective.ENERGY) == [[30.0, 10.0], [0.0, 0.0], [8.0, 0.0]]


def test_local_is_the_rounding_error_alone() -> None:
    assert rows(Objective.LOCAL) == [[3.0, 1.0], [5.0, 2.0], [4.0, 0.0]]


def test_paper_shifts_by_the_least_finite_score_and_halves_with_each_bit() -> None:
    assert rows(Objective.PAPER) == [[0.75 / 4, 0.75 / 16], [0.0, 0.0], [0.0, 0.0]]


def test_paper_literal_is_the_printed_formula() -> None:
    assert rows(Objective.PAPER_LITERAL) == [[0.5 / 4, 0.5 / 16], [0.0, 0.0], [-0.25 / 4, -0.25 / 16]]


def test_paper_literal_is_least_at_the_bottom_tier_for_a_negative_score() -> None:
    assert int(np.argmin(rows(Objective.PAPER_LITERAL)[2])) == 0


def test_all_dead_scores_cost_nothing() -> None:
    dead = np.full(3, -math.inf)
    assert rows(Objective.PAPER, gamma=dead) == [[0.0, 0.0]] * 3


def test_weights_may_have_tiers_of_their_own() -> None:
    changes = {"bits": [BITS, np.array([8.0]), BITS], "error_energy": [ENERGY[0], np.array([1.0]), ENERGY[2]]}
    assert [len(row) for row in rows(Objective.PAPER, **changes)] == [2, 1, 2]


def test_no_weights_have_no_costs() -> None:
    assert rows(Objective.PAPER, amplification=np.empty(0), gamma=np.empty(0), error_energy=[]) == []


@pytest.mark.parametrize("objective", [Objective.PAPER, Objective.PAPER_LITERAL])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(objective: Objective, bad: float) -> None:
    with pytest.raises(InputError, match="weight 2: the score γ is NaN or infinite"):
        rows(objective, gamma=np.array([0.5, -math.inf, bad]))


def test_a_score_that_is_not_used_is_not_looked_at() -> None:
    assert rows(Objective.LOCAL, gamma=np.full(3, math.nan), amplification=np.full(3, math.nan))[0] == [
        3.0,
        1.0,
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_an_amplification_that_makes_no_sense_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="weight 1: the amplification"):
        rows(Objective.ENERGY, amplification=np.array([1.0, bad, 1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_an_error_energy_that_makes_no_sense_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="weight 0: an error energy"):
        rows(Objective.LOCAL, error_energy=[np.array([bad, 1.0]), *ENERGY[1:]])


def test_a_cost_that_overflows_is_refused() -> None:
    with pytest.raises(InputError, match="weight 0: the cost overflows"):
        rows(
            Objective.ENERGY,
            amplification=np.full(3, 1e300),
            error_energy=[np.array([1e300, 1.0]), *ENERGY[1:]],
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"amplification": np.ones(2)},
        {"gamma": np.ones(4)},
        {"bits": np.ones(3)},
        {"bits": [BITS, BITS]},
    ],
)
def test_shapes_that_disagree_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        rows(Objective.ENERGY, **changes)
