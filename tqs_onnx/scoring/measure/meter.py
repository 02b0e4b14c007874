"""Measures one perturbed rollout: energies against the nominal trajectory of the same session.

A rollout that stopped early after t steps is extrapolated at its rate: per context
e(T) = ‖δθ‖² · (e(t) / ‖δθ‖²)^(T/t), so that ln A(T)/T keeps its converged value; the shares of the variables stay
unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.distance import Ruler
from tqs_onnx.rollout.engine import Squares
from tqs_onnx.rollout.held import Held


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """The measurement of one rollout.

    Parameters
    ----------
    energy : float64 array, ``[contexts, horizons]``
        e_s(T), cumulative over time; zeros if the rollout was not finite or not needed.
    variables : float64 array, ``[variables]``
        Σ over space and time of (ΔY/σ_v)² up to the last step, mean over the contexts of v, in the ruler's order.
    delta_sq : float
        ‖δθ‖²; 0 if the probe was zero and nothing was rolled out.
    steps : int
        Model calls per context; 0 if nothing was rolled out.
    finite : bool
        False if the rollout became NaN or infinite.
    """

    energy: NDArray[np.float64]
    variables: NDArray[np.float64]
    delta_sq: float
    steps: int
    finite: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """Computes the cumulative energies of a rollout against the nominal one, at each horizon.

    Parameters
    ----------
    ruler : Ruler
    spaces : dict of str to int
        Values per context and time of each variable.
    held : Held
        The nominal rollout.
    horizons : tuple of int
        Steps, increasing.
    """

    ruler: Ruler
    spaces: dict[str, int]
    held: Held
    horizons: tuple[int, ...]

    def blank(self, delta_sq: float, *, finite: bool = True) -> Measurement:
        """Return the measurement of a rollout without a result: the probe was zero, or the rollout was not finite."""
        shape = (self.ruler.contexts.n_contexts, len(self.horizons))
        return Measurement(np.zeros(shape), np.zeros(len(self.ruler.rows)), delta_sq, 0, finite)

    def measure(self, squares: Squares, delta_sq: float) -> Measurement:
        """Return the measurement of a rollout, which may be shorter than the nominal one."""
        steps = len(squares.time_after) - 1
        ends = np.array([self.held.time_after[min(t, steps)] for t in self.horizons])
        parts = self.ruler.parts(squares.outputs)
        running = np.cumsum(self.ruler.energy(parts, self.spaces, self.n_time), axis=1)
        energy = running[:, ends - 1]
        variables = np.array([float(s.sum(axis=1).mean()) for s in parts.values()])
        beyond = np.array(self.horizons) / steps
        if (beyond > 1).any() and delta_sq > 0:
            stretch = np.maximum(beyond, 1.0)
            seen = float(energy[:, -1].mean())
            energy = delta_sq * (energy / delta_sq) ** stretch
            variables *= float(energy[:, -1].mean()) / seen if seen > 0 else 1.0
        return Measurement(energy, variables, delta_sq, steps)

    @property
    def n_time(self) -> int:
        """Number of time values of the nominal trajectory."""
        return self.held.time_after[-1]
