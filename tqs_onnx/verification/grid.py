"""Scores of forecasts on a grid of latitudes and longitudes: weighted by area, and the correlation of anomalies.

An anomaly is the difference from the climatology, which here is the mean of the truth over the contexts and their time
values at every point: a sample climatology, not one of many years. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Anomaly:
    """Latitude-weighted scores of one forecast on a grid, each float64 ``[context, time]``.

    Parameters
    ----------
    mse : NDArray
        Weighted mean squared error.
    correlation : NDArray
        Σ w f'o' / √(Σ w f'² · Σ w o'²), f' and o' the anomalies of forecast and truth; NaN where one has none.
    """

    mse: Floats
    correlation: Floats


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of latitudes by longitudes: the last two axes of a variable.

    Parameters
    ----------
    weights : NDArray
        cos(latitude), scaled to mean 1, ``[latitude, 1]``.
    climatology : dict of str to NDArray
        Mean of the truth over contexts and time, ``[*rest]``, per output; anomalies are taken from it.
    """

    weights: Floats
    climatology: dict[str, Floats]


def grid_of(contexts: Contexts) -> Grid | None:
    """Return the grid of contexts that state their latitudes and hold a truth."""
    if contexts.latitudes is None or not contexts.truth:
        return None
    weights = np.cos(np.deg2rad(np.array(contexts.latitudes)))
    means = {name: _mean(array) for name, array in contexts.truth.items()}
    return Grid((weights / weights.mean())[:, None], means)


def _mean(array: NDArray[Any]) -> Floats:
    total = np.zeros(array.shape[2:])
    for context in array:
        total += context.sum(axis=0, dtype=np.float64)
    total /= array.shape[0] * array.shape[1]
    return total


def weighted_sums(forecast: Floats, truth: Floats, mean: Floats, weights: Floats) -> Floats:
    """Return Σw(f−o)², Σwf'o', Σwf'² and Σwo'² over space, ``[context, time, 4]``."""
    f, o = forecast - mean, truth - mean
    space = tuple(range(2, forecast.ndim))
    return np.stack([(weights * part).sum(space) for part in ((f - o) ** 2, f * o, f * f, o * o)], axis=-1)


def anomaly_of(cells: Floats, n_space: int) -> Anomaly:
    """Return the scores of the sums that `weighted_sums` gave, ``[context, time, 4]``."""
    norm = np.sqrt(cells[..., 2] * cells[..., 3])
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.where(norm > 0, cells[..., 1] / norm, np.nan)
    return Anomaly(cells[..., 0] / n_space, correlation)
