"""Computes scores from energies: Eq. 1, Eq. 2, A_max and growth of one weight.

With e_s(T) = ‖ΔY_s,1:T‖² of context (or draw) s and one δθ per draw ::

    A(T)     = mean over s of e_s(T) / (‖δθ‖² + ε)
    γ_task   = ln A(T_max) / T_max                                         (Eq. 1, squared norms)
    γ(T)     = mean over s of ln( ‖ΔY_s,1:T‖ / (‖δθ‖ + ε) ) / T            (Eq. 2, plain norms)
    A_max    = max over s and T of ‖ΔY_s,1:T‖ / (‖δθ‖ + ε)
    convergence(T) = γ(T) / γ(T_max), the horizon-convergence ratios (A.14)
    growth   = (ln A(T₂) − ln A(T₁)) / (T₂ − T₁), T₁ < T₂ the first and last horizon

Every ratio has a floor of 1e-30, so a weight that moves nothing scores ln(1e-30) / T, the paper's sentinel. A horizon
at which no context moved beyond the session's floor has no numbers; growth and the mean use the other horizons. T
counts steps. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: ε of Eqs. 1 and 2; negligible compared with the square of any probe of a float weight.
EPSILON = 1e-20
#: Floor of every ratio before taking its logarithm.
RATIO_FLOOR = 1e-30


@dataclass(frozen=True, slots=True)
class Gammas:
    """Scores of one weight (see module docstring).

    Parameters
    ----------
    gamma : tuple of float or None
        γ(T) per horizon; None below the floor.
    gamma_stderr : float
        Standard error of γ(T_max) over contexts and draws; 0 for a single value.
    gamma_task : float
    gamma_task_stderr : float
        Standard error of γ_task over contexts and draws, to first order: that of A over A · T.
    gamma_task_mean : float
        γ_task averaged over the horizons above the floor (A.13).
    convergence : tuple of float or None, or None
        γ(T) / γ(T_max) per horizon, None below the floor; None as a whole if γ(T_max) is 0.
    a_max : float
    amplification : float
        A(T_max).
    growth : float or None
        Growth between the first and the last horizon above the floor; None if only one is above it.
    """

    gamma: tuple[float | None, ...]
    gamma_stderr: float
    gamma_task: float
    gamma_task_stderr: float
    gamma_task_mean: float
    convergence: tuple[float | None, ...] | None
    a_max: float
    amplification: float
    growth: float | None


def gammas(
    energy: NDArray[np.float64],
    delta_sq: NDArray[np.float64],
    horizons: tuple[int, ...],
    floor: NDArray[np.float64] | None = None,
) -> Gammas:
    """Return the scores of one weight.

    Parameters
    ----------
    energy : float64 array, ``[draws, contexts, horizons]``
        e_s(T), cumulative over time.
    delta_sq : float64 array, ``[draws]``
        ‖δθ‖² of each draw, > 0.
    horizons : tuple of int
        Steps, increasing.
    floor : float64 array ``[horizons]``, optional
        Energy of one context below which values have no meaning. The last horizon always has numbers.
    """
    above = np.ones(len(horizons), bool) if floor is None else energy.max(axis=(0, 1)) > floor
    above[-1] = True
    steps = np.array(horizons, np.float64)
    squared = energy / (delta_sq[:, None, None] + EPSILON)
    plain = np.sqrt(energy) / (np.sqrt(delta_sq)[:, None, None] + EPSILON)
    a = squared.mean(axis=(0, 1))
    log_a = np.log(np.maximum(a, RATIO_FLOOR))
    rates = np.log(np.maximum(plain, RATIO_FLOOR)) / steps
    per_sample = rates[..., -1].ravel()
    stderr = float(per_sample.std(ddof=1) / np.sqrt(per_sample.size)) if per_sample.size > 1 else 0.0
    means = [float(g) for g in rates.mean(axis=(0, 1))]
    gamma = tuple(g if seen else None for g, seen in zip(means, above, strict=True))
    first = int(np.argmax(above))
    last = squared[..., -1].ravel()
    spread = float(last.std(ddof=1) / np.sqrt(last.size)) if last.size > 1 else 0.0
    spans = first < len(horizons) - 1
    growth = float((log_a[-1] - log_a[first]) / (steps[-1] - steps[first])) if spans else None
    return Gammas(
        gamma=gamma,
        gamma_stderr=stderr,
        gamma_task=float(log_a[-1] / steps[-1]),
        gamma_task_stderr=spread / max(float(a[-1]), RATIO_FLOOR) / float(steps[-1]),
        convergence=tuple(None if g is None else g / means[-1] for g in gamma) if means[-1] != 0.0 else None,
        gamma_task_mean=float(np.mean((log_a / steps)[above])),
        a_max=float(plain.max()),
        amplification=float(a[-1]),
        growth=growth,
    )
