"""Objectives: the cost of storing a weight in a tier, which the knapsack adds up.

    energy          A_ℓ · ‖Q_k(θ_ℓ) − θ_ℓ‖²     predicted squared divergence of the trajectory (the default)
    measured        ‖ΔY‖² of the rollout        measured response to the weight in that tier, as it will be rounded
    paper           (γ_ℓ − γ_min) · 2^−b_k      A.1.2 with the shift of A.9
    paper-literal   γ_ℓ · 2^−b_k                A.1.2 as printed
    local           ‖Q_k(θ_ℓ) − θ_ℓ‖²           a control: rounding error without the rollout

`paper-literal` is degenerate: for γ < 0 the fewest bits have the *least* cost, so at any budget every weight
with a negative score gets the lowest tier. It exists to reproduce the formula. In `paper` the least
sensitive weight costs nothing in any tier, so it gets the lowest tier as well. Neither of them considers the size of
the weight's rounding error. Uses no ONNX and no runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError


class Objective(StrEnum):
    """How a tier's cost is computed (see the module's docstring)."""

    ENERGY = "energy"
    MEASURED = "measured"
    PAPER = "paper"
    PAPER_LITERAL = "paper-literal"
    LOCAL = "local"


class RankBy(StrEnum):
    """Which score of a weight counts as γ: in the paper's objectives, for `p_fp32`, and for `gamma_min`.

    `gamma-task`: Eq. 1, over all contexts at the last horizon. `gamma`: Eq. 2, the mean over contexts at the last
    horizon. `gamma-task-mean`: Eq. 1, averaged over the horizons (A.13). With the two probes these are the variants
    that the paper compares.
    """

    TASK = "gamma-task"
    PLAIN = "gamma"
    MEAN = "gamma-task-mean"


def costs(
    objective: Objective,
    *,
    amplification: NDArray[np.float64] | Sequence[NDArray[np.float64]],
    gamma: NDArray[np.float64],
    error_energy: Sequence[NDArray[np.float64]],
    bits: NDArray[np.float64] | Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], ...]:
    """Return the cost of every weight in every tier. Lower is better; only `paper-literal` can be negative.

    A dead weight (amplification 0, γ = −inf) costs 0 in every tier under objectives that use that score, so
    the knapsack gives it its smallest choice. `gamma` and `amplification` are read only when the
    objective uses them.

    Parameters
    ----------
    objective : Objective
        The formula.
    amplification : NDArray[np.float64] or sequence of NDArray[np.float64]
        A, squared divergence per squared perturbation, ≥ 0: shape [n], or [K_i] per weight when it depends on the
        size of the error.
    gamma : NDArray[np.float64]
        γ, shape [n]; −inf for dead weights.
    error_energy : sequence of NDArray[np.float64]
        Per weight, ‖Q_k(θ) − θ‖² of each of its tiers, shape [K_i], ≥ 0.
    bits : NDArray[np.float64] or sequence of NDArray[np.float64]
        Effective bits of the tiers, shape [K] when all weights have the same tiers, else [K_i] per weight.

    Returns
    -------
    tuple of NDArray[np.float64]
        The costs of each weight, shape [K_i], finite.

    Raises
    ------
    InputError
        Shapes disagree; a required score is NaN or +inf; an amplification or energy is negative or not finite;
        or a cost overflows.
    """
    n = len(error_energy)
    bits_of = [bits] * n if isinstance(bits, np.ndarray) else list(bits)
    amps = list(amplification)
    if len(amps) != n or gamma.shape != (n,) or len(bits_of) != n:
        raise InputError(
            f"{n} error energies, {len(amps)} amplifications and {gamma.shape} scores do not match"
        )
    for i, (energy, b) in enumerate(zip(error_energy, bits_of, strict=True)):
        if energy.ndim != 1 or b.shape != energy.shape:
            raise InputError(
                f"{energy.shape} error energies do not match {b.shape} tiers", where=f"weight {i}"
            )
        _require(
            bool(np.isfinite(energy).all() and (energy >= 0).all()),
            "an error energy is negative or not finite",
            i,
        )

    match objective:
        case Objective.ENERGY | Objective.MEASURED:
            for i, a in enumerate(amps):
                valid = bool(np.all(np.isfinite(a) & (a >= 0)))
                _require(valid and np.shape(a) in ((), bits_of[i].shape), "the amplification is unusable", i)
            with np.errstate(over="ignore"):  # refused below, with the weight's index
                rows = [a * energy for a, energy in zip(amps, error_energy, strict=True)]
        case Objective.LOCAL:
            rows = [energy.astype(np.float64) for energy in error_energy]
        case Objective.PAPER:
            alive = _alive(gamma)
            least = gamma.min(where=alive, initial=np.inf)
            rows = [
                (g - least) * 2.0**-b if on else 0.0 * b
                for g, b, on in zip(gamma, bits_of, alive, strict=True)
            ]
        case Objective.PAPER_LITERAL:
            alive = _alive(gamma)
            rows = [g * 2.0**-b if on else 0.0 * b for g, b, on in zip(gamma, bits_of, alive, strict=True)]
    for i, row in enumerate(rows):
        _require(bool(np.isfinite(row).all()), "the cost overflows", i)
    return tuple(rows)


def _alive(gamma: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which scores are not −inf, shape [n]; refuse NaN and +inf."""
    alive = ~np.isneginf(gamma)
    _require_all(~alive | np.isfinite(gamma), "the score γ is NaN or infinite")
    return alive


def _require_all(valid: NDArray[np.bool_], what: str) -> None:
    for i in np.flatnonzero(~valid)[:1]:
        _require(False, what, int(i))


def _require(valid: bool, what: str, i: int) -> None:
    if not valid:
        raise InputError(what, where=f"weight {i}", todo="Score the weight again, or leave it out")
