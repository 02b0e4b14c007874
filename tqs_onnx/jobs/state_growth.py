"""Growth of an error of the state: how fast the model, its weights untouched, drives two near states apart (A.12).

    x₀ + δx, ‖δx‖ equal in every context  ──▶  two rollouts in one session  ──▶  ‖ΔY_t‖ at every step

This is the finite-time Lyapunov exponent of the model, the yardstick for the growth of the errors of its weights.
δx is isotropic noise, small against the deviation of each input that feedback fills; zeros, which may mark missing
values, keep their value.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.measure.gamma import gammas
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.moments import Comparison, compared

#: Size of δx, in deviations of each input over the contexts.
SIZE = 1e-3
DRAWS = 2


class StateGrowth(BaseModel):
    """How an error of the initial state grows.

    Attributes
    ----------
    size : float
        Root mean square of δx, in deviations of each input.
    draws : int
    horizons : tuple of int
    gamma : tuple of float or None
        γ(T) of Eq. 2 with δx in place of δθ; None below the floor.
    growth : float or None
        As that of a weight: (ln A(T₂) − ln A(T₁)) / (T₂ − T₁). A is squared, so it is twice the exponent.
    distance_per_step : tuple of float
        Geometric mean over contexts and draws of the root mean square of ΔY, in σ, step by step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: float
    draws: int
    horizons: tuple[int, ...]
    gamma: tuple[float | None, ...]
    growth: float | None
    distance_per_step: tuple[float, ...]


def state_growth(bed: Testbed, scores: Scores) -> StateGrowth | None:
    """Measure the growth of an error of the state on the contexts of a testbed; None if it does not move forecasts.

    Parameters
    ----------
    bed : Testbed
    scores : Scores
        Their σ weighs the variables; γ is given at their horizons.

    Raises
    ------
    NonFiniteError
        A rollout from a moved state becomes NaN or infinite.
    """
    found = [_energy(bed, moved, scores) for moved in (_moved(bed, draw) for draw in range(DRAWS)) if moved]
    if not found or not all((energy > 0).all() for energy, _ in found):
        return None
    by_step = np.stack([energy for energy, _ in found])
    n_values = found[0][1]
    steps = by_step.shape[-1]
    horizons = tuple(t for t in scores.horizons if t <= steps) or (steps,)
    cumulative = by_step.cumsum(axis=-1)[..., [t - 1 for t in horizons]]
    delta_sq = np.full(len(found), SIZE**2 * _n_state(bed))
    scored = gammas(cumulative, delta_sq, horizons)
    distance = np.exp(0.5 * np.log(by_step / n_values).mean(axis=(0, 1)))
    return StateGrowth(
        size=SIZE,
        draws=len(found),
        horizons=horizons,
        gamma=scored.gamma,
        growth=scored.growth,
        distance_per_step=tuple(float(d) for d in distance),
    )


def _states(contexts: Contexts, bed: Testbed) -> dict[str, NDArray[Any]]:
    """Return the arrays that feedback fills, of float types."""
    names = {f.input for f in bed.spec.feedback}
    return {n: a for n, a in contexts.arrays.items() if n in names and np.issubdtype(a.dtype, np.floating)}


def _n_state(bed: Testbed) -> int:
    return sum(a[0].size for a in _states(bed.contexts, bed).values())


def _moved(bed: Testbed, draw: int) -> Contexts | None:
    """Return the contexts from moved states, at the same distance in every context; None if nothing is fed back."""
    states = _states(bed.contexts, bed)
    if not states:
        return None
    noise: dict[str, NDArray[np.float64]] = {}
    for name, array in states.items():
        key = zlib.crc32(f"{name}\0{draw}".encode())
        drawn = np.random.Generator(np.random.Philox(key)).standard_normal(array.shape)
        noise[name] = np.where(array == 0, 0.0, drawn)
    norm = np.sqrt(sum((n.reshape(len(n), -1) ** 2).sum(1) for n in noise.values()))
    scale = SIZE * np.sqrt(_n_state(bed)) / np.maximum(norm, np.finfo(np.float64).tiny)
    arrays = dict(bed.contexts.arrays)
    for name, array in states.items():
        factor = (_deviation(array) * scale).reshape(-1, *[1] * (array.ndim - 1))
        arrays[name] = (array + factor * noise[name]).astype(array.dtype)
    return replace(bed.contexts, arrays=arrays)


def _deviation(array: NDArray[Any]) -> float:
    """Return the root mean variance over contexts, which offsets between channels do not enter; else of all values."""
    values = array.astype(np.float64)
    return float(np.sqrt(values.var(axis=0).mean())) or float(values.std()) or 1.0


def _energy(bed: Testbed, moved: Contexts, scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ‖ΔY‖² in σ² by context and step, ``[context, step]``, and the number of values that were summed."""
    nominal = bed.exposed.pieces({})
    found: Comparison = compared(
        nominal, bed.on(moved).exposed.pieces({}), bed.spec, bed.contexts, truth=False
    )
    bounds = list(zip(found.time_after[:-1], found.time_after[1:], strict=True))
    energy = np.zeros((found.n_contexts, len(bounds)))
    values = np.zeros_like(energy)
    for name, sums in found.variables.items():
        for step, (start, stop) in enumerate(bounds):
            energy[sums.rows, step] += (
                sums.between.squared[:, start:stop].sum(axis=1) / scores.sigma[name] ** 2
            )
            values[sums.rows, step] += sums.between.n_space * (stop - start)
    return energy, values
