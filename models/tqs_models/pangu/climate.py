"""Approximate means and deviations of the atmosphere, used to standardise Pangu-Weather's variables.

These are not the constants of the released file, which are inside it, but values of the right magnitude. With them a
model with random weights maps physical states to physical states.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Maps hPa to the means of z (m²/s²), q (kg/kg), t (K), and their deviations.
_LEVELS = {
    1000: (800.0, 7.0e-3, 281.0, 1100.0, 5.9e-3, 17.0),
    925: (7000.0, 6.0e-3, 279.0, 1300.0, 5.1e-3, 16.0),
    850: (14000.0, 4.6e-3, 275.0, 1500.0, 4.1e-3, 16.0),
    700: (29000.0, 2.4e-3, 268.0, 2200.0, 2.5e-3, 15.0),
    600: (41000.0, 1.5e-3, 261.0, 2800.0, 1.8e-3, 14.0),
    500: (54000.0, 8.5e-4, 253.0, 3400.0, 1.1e-3, 13.0),
    400: (70000.0, 3.8e-4, 243.0, 4200.0, 5.3e-4, 12.0),
    300: (90000.0, 1.3e-4, 229.0, 5100.0, 1.8e-4, 11.0),
    250: (102000.0, 5.6e-5, 223.0, 5500.0, 7.6e-5, 8.6),
    200: (116000.0, 1.9e-5, 218.0, 5800.0, 2.3e-5, 7.1),
    150: (134000.0, 6.1e-6, 213.0, 5800.0, 5.0e-6, 8.2),
    100: (158000.0, 2.7e-6, 208.0, 5500.0, 1.0e-6, 13.0),
    50: (200000.0, 2.7e-6, 212.0, 5900.0, 5.0e-7, 10.0),
}
_WIND = (10.0, 8.0)
"""Deviations of u and v; their means are set to 0."""


def upper(levels: int) -> tuple[Array, Array]:
    """Return mean and deviation, float32 [5, levels, 1, 1] each, of z, q, t, u, v.

    If the number of levels is not 13, the 13 are used cyclically.
    """
    rows = np.array([list(_LEVELS.values())[i % len(_LEVELS)] for i in range(levels)], np.float32)
    mean, deviation = np.zeros((5, levels), np.float32), np.empty((5, levels), np.float32)
    mean[:3], deviation[:3] = rows[:, :3].T, rows[:, 3:].T
    deviation[3:] = np.array(_WIND, np.float32)[:, None]
    return mean[:, :, None, None], deviation[:, :, None, None]


def surface() -> tuple[Array, Array]:
    """Return mean and deviation, float32 [4, 1, 1] each, of msl, u10, v10, t2m."""
    mean, deviation = np.array([101000, 0, 0, 279], np.float32), np.array([1300, 5.5, 4.7, 21], np.float32)
    return mean[:, None, None], deviation[:, None, None]


def states(levels: int, lat: int, lon: int, n: int, seed: int) -> dict[str, Array]:
    """Return `n` random smooth states: `input` [n, 5, levels, lat, lon] and `input_surface` [n, 4, lat, lon]."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, np.pi, lat)[:, None], np.linspace(0, 2 * np.pi, lon, endpoint=False)[None, :]

    def fields(*sides: int) -> Array:
        waves = np.zeros((*sides, lat, lon), np.float32)
        for k in range(1, 5):
            a, b = rng.standard_normal((2, *sides, 1, 1)).astype(np.float32)
            waves += (a * np.sin(k * y) * np.cos(k * x) + b * np.cos(k * y) * np.sin(k * x)) / k
        return waves

    result: dict[str, Array] = {}
    mean, deviation = upper(levels)
    result["input"] = (mean + deviation * fields(n, 5, levels)).astype(np.float32)
    mean, deviation = surface()
    result["input_surface"] = (mean + deviation * fields(n, 4)).astype(np.float32)
    return result
