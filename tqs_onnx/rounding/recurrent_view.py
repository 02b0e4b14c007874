"""Views recurrent weights as matrices [group, out, in], and their inputs over time as rows [group, n, in].

    reader            weight                matrices             rows, over all steps and contexts
    LSTM, GRU, RNN    W [D, G·H, in]        [D, G·H, in]         x_t
    LSTM, GRU, RNN    R [D, G·H, H]         [D, G·H, H]          h_{t-1}: the output Y, moved by one step
    GRU, reset first  R [D, 3·H, H]         [3·D, H, H]          gates z, r: h_{t-1}; candidate: r_t ∘ h_{t-1}

D directions, G gates, H units. A direction that runs backwards has h_{t+1} before h_t. Without `linear_before_reset` a
GRU resets its state before the product; r_t is then computed from x_t, h_{t-1} and the weights as they are. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class InputView:
    """The view of W.

    Parameters
    ----------
    directions : int
    """

    directions: int

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]."""
        return weight

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        return np.ascontiguousarray(matrices).reshape(shape)

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return [group, n, in] of x [time, batch, in]."""
        flat = activation.reshape(1, -1, shape[-1]).astype(np.float64)
        return np.broadcast_to(flat, (self.directions, *flat.shape[1:]))


@dataclass(frozen=True, slots=True)
class StateView:
    """The view of R.

    Parameters
    ----------
    backward : tuple of bool
        For each direction, whether it runs backwards.
    """

    backward: tuple[bool, ...]

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]."""
        return weight

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        return np.ascontiguousarray(matrices).reshape(shape)

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return [group, n, in] of Y [time, D, batch, H]; `also`: the initial state [D, batch, H], or None for zero."""
        before = previous(activation, also[0] if also else None, self.backward)
        return before.reshape(len(self.backward), -1, shape[-1])


@dataclass(frozen=True, slots=True)
class ResetStateView:
    """The view of R of a GRU that resets its state before the product.

    Parameters
    ----------
    backward : tuple of bool
    """

    backward: tuple[bool, ...]

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]: the gates z, r and h of every direction."""
        n = weight.shape[-1]
        return weight.reshape(-1, n, n)

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        return np.ascontiguousarray(matrices).reshape(shape)

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return [group, n, in] of Y; `also`: the initial state or None, x [time, batch, in], W, R, and B or None."""
        initial, x, w, r, b = also
        assert x is not None
        assert w is not None
        assert r is not None
        n = shape[-1]
        before = previous(activation, initial, self.backward)  # [D, time, batch, H]
        found: list[Matrix] = []
        for d, h in enumerate(before):
            gate = x.astype(np.float64) @ w[d, n : 2 * n].astype(np.float64).T
            gate += h @ r[d, n : 2 * n].astype(np.float64).T
            if b is not None:
                gate += b[d, n : 2 * n].astype(np.float64) + b[d, 4 * n : 5 * n].astype(np.float64)
            with np.errstate(over="ignore"):
                reset = h / (1 + np.exp(-gate))
            found += [h, h, reset]
        return np.stack(found).reshape(len(found), -1, n)


def previous(states: NDArray[Any], initial: NDArray[Any] | None, backward: tuple[bool, ...]) -> Matrix:
    """Return the state before every step, float64 [D, time, batch, H].

    Parameters
    ----------
    states : array [time, D, batch, H]
        The state after every step.
    initial : array [D, batch, H], optional
        Default: zero.
    backward : tuple of bool
        For each direction, whether it runs backwards.
    """
    by_direction = np.moveaxis(states.astype(np.float64), 0, 1)
    first = np.zeros_like(by_direction[:, :1]) if initial is None else initial.astype(np.float64)[:, None]
    moved = [
        np.concatenate([y[1:], h] if back else [h, y[:-1]])
        for y, h, back in zip(by_direction, first, backward, strict=True)
    ]
    return np.stack(moved)
