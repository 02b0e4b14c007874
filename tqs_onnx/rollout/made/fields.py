"""Generate fields: noise smoothed along its axes, with a level of its own in every channel.

    white noise ─▶ Gaussian filter of one width along the axes (toroidal) ─▶ deviation 1 ─▶ + ½ · level

NumPy only; deterministic for a generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Deviation of the level of a channel, in deviations of the field.
LEVEL = 0.5
#: Range of the width of the smoothing filter, in cells; one field in four is white noise.
WIDTHS = (0.8, 2.0)
_WHITE = 0.25


def made_field(rng: np.random.Generator, shape: Sequence[int], smooth: Sequence[int]) -> Floats:
    """Return a field of a shape.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : sequence of int
    smooth : sequence of int
        Axes along which neighbours resemble each other; the others are channels.
    """
    noise = rng.standard_normal(tuple(shape))
    width = 0.0 if rng.uniform() < _WHITE else float(rng.uniform(*WIDTHS))
    axes = tuple(smooth)
    if width and axes:
        noise = _smoothed(noise, axes, width)
    kept = tuple(1 if a in axes else n for a, n in enumerate(shape))
    return noise + LEVEL * rng.standard_normal(kept) if axes else noise


def _smoothed(noise: Floats, axes: tuple[int, ...], width: float) -> Floats:
    """Filter along the axes so that the expected variance of a value stays 1."""
    waves = np.fft.fftn(noise, axes=axes)
    power = 1.0
    for axis in axes:
        n = noise.shape[axis]
        gain = np.exp(-0.5 * (2 * np.pi * width * np.fft.fftfreq(n)) ** 2)
        power *= float((gain**2).mean())
        waves = waves * gain.reshape([-1 if a == axis else 1 for a in range(noise.ndim)])
    return np.asarray(np.fft.ifftn(waves, axes=axes).real / np.sqrt(power))
