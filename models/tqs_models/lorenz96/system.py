"""The Lorenz-96 system: 40 variables on a circle, chaotic for a forcing of 8.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F        i = 1 .. 40, indices mod 40, F = 8

Integrated by the classical fourth-order Runge-Kutta scheme in float64. One time unit corresponds to about five
days; the step of the demo model, 0.05, to six hours. The largest Lyapunov exponent is about 1.67 per time
unit.

Source: E. N. Lorenz, "Predictability: a problem partly solved", ECMWF seminar, 1996; Lorenz and Emanuel, J.
Atmos. Sci. 55, 1998; exponent: Karimi and Paul, Chaos 20, 2010. This module must never import torch or onnx.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

VARIABLES = 40
FORCING = 8.0
STEP = 0.05
"""Time units per call of the demo model."""
SUBSTEPS = 5
"""Runge-Kutta steps per `STEP`."""
LYAPUNOV = 1.67
"""Largest Lyapunov exponent in the literature, per time unit."""

Float64 = NDArray[np.float64]


def tendency(x: Float64) -> Float64:
    """Return dx/dt of `x`, both float64 [..., 40], in units per time unit."""
    return (np.roll(x, -1, -1) - np.roll(x, 2, -1)) * np.roll(x, 1, -1) - x + FORCING


def runge_kutta(x: Float64, step: float) -> Float64:
    """Advance `x`, float64 [..., 40], by one Runge-Kutta step of `step` time units."""
    k1 = tendency(x)
    k2 = tendency(x + 0.5 * step * k1)
    k3 = tendency(x + 0.5 * step * k2)
    k4 = tendency(x + step * k3)
    return x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def advance(x: Float64) -> Float64:
    """Advance `x`, float64 [..., 40], by `STEP` time units."""
    for _ in range(SUBSTEPS):
        x = runge_kutta(x, STEP / SUBSTEPS)
    return x


def trajectory(x: Float64, steps: int) -> Float64:
    """Return the states after 1 .. `steps` steps of `STEP`: float64 [..., 40] -> [..., steps, 40]."""
    states = np.empty((*x.shape[:-1], steps, x.shape[-1]))
    for t in range(steps):
        x = advance(x)
        states[..., t, :] = x
    return states


def climate(members: int, seed: int, spin_up: int = 400) -> Float64:
    """Return states on the attractor, float64 [members, 40], each from its own random start.

    Parameters
    ----------
    members : int
        Number of states.
    seed : int
        Seed of the random starts; the same seed gives the same result.
    spin_up : int
        Steps of `STEP` from each start before its state is taken: 400 are 20 time units.
    """
    x = FORCING + np.random.default_rng(seed).standard_normal((members, VARIABLES))
    for _ in range(spin_up):
        x = advance(x)
    return x


def lyapunov(
    advance_by: Callable[[Float64], Float64],
    start: Float64,
    *,
    steps: int,
    settle: int,
    distance: float = 1e-6,
    step: float = STEP,
    seed: int = 0,
) -> float:
    """Estimate the largest Lyapunov exponent of a map by renormalised differences of twin trajectories.

    After each step the twin is moved back to `distance` from its original, along their difference; the
    exponent is the mean logarithm of the growth (Benettin et al., Meccanica 15, 1980).

    Parameters
    ----------
    advance_by : callable
        The map, float64 [n, variables] -> the same shape.
    start : numpy.ndarray
        States on the attractor, float64 [members, variables].
    steps, settle : int
        Steps that count, and steps before them in which the twins turn towards the growing direction.
    distance : float
        Norm to which the differences are reset. For a map computed in float32, well above its rounding error.
    step : float
        Time units per call of `advance_by`.
    seed : int
        Seed of the first directions.

    Returns
    -------
    float
        The exponent per time unit, mean over members and steps.
    """

    def toward(difference: Float64) -> Float64:
        scaled: Float64 = difference * (distance / np.linalg.norm(difference, axis=1, keepdims=True))
        return scaled

    members = len(start)
    x = start
    twin = x + toward(np.random.default_rng(seed).standard_normal(x.shape))
    total = 0.0
    for t in range(settle + steps):
        both = advance_by(np.concatenate([x, twin]))
        x, difference = both[:members], both[members:] - both[:members]
        if t >= settle:
            total += float(np.log(np.linalg.norm(difference, axis=1) / distance).mean())
        twin = x + toward(difference)
    return total / (steps * step)
