"""Generate series: mixtures of seasons, trends, smooth noise, white noise, level shifts and spikes.

A series is a sum of 1 to 5 parts with log-normal amplitudes (σ 0.7), standardised to mean 0 and variance 1 over its
length. Channels share a common series to a random extent: cᵢ = √wᵢ · common + √(1 - wᵢ) · own, wᵢ uniform in [0, 1].
NumPy only; deterministic for a generator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Periods of seasons, in samples: hours of a day, days of a week, …
PERIODS = (7, 12, 24, 30, 48, 96, 168)
#: Widths of the Gaussian that smooths noise, in samples.
WIDTHS = (8, 32, 128)
_MOST_PARTS = 5
_HARMONICS = 4
_NOISE = 0.3
_LEAST_DEVIATION = 1e-6


def made_series(rng: np.random.Generator, length: int, channels: int) -> Floats:
    """Return an array [length, channels]; every channel has mean 0 and variance 1.

    Parameters
    ----------
    rng : numpy.random.Generator
    length : int
    channels : int
    """
    common = _one(rng, length)
    if channels == 1:
        return common[:, None]
    shares = rng.uniform(size=channels)
    signs = rng.choice((-1.0, 1.0), size=channels)
    own = np.stack([_one(rng, length) for _ in range(channels)], axis=1)
    return _standardised(np.sqrt(shares) * signs * common[:, None] + np.sqrt(1 - shares) * own)


def _one(rng: np.random.Generator, length: int) -> Floats:
    total = np.zeros(length)
    for _ in range(int(rng.integers(1, _MOST_PARTS + 1))):
        part = _PARTS[int(rng.choice(len(_PARTS), p=_CHANCES))]
        total += rng.lognormal(sigma=0.7) * part(rng, length)
    return _standardised(total + _LEAST_DEVIATION * rng.standard_normal(length))


def _standardised(values: Floats) -> Floats:
    deviation = np.maximum(values.std(axis=0), np.finfo(np.float64).tiny)
    return np.asarray((values - values.mean(axis=0)) / deviation)


def season(rng: np.random.Generator, length: int) -> Floats:
    """Return harmonics 1 to 4 of one of the periods, with random phases and amplitudes."""
    period = float(rng.choice(PERIODS))
    t = np.arange(length)
    waves = np.zeros(length)
    for harmonic in range(1, _HARMONICS + 1):
        waves += (
            rng.standard_normal() / harmonic * np.sin(2 * np.pi * (harmonic * t / period + rng.uniform()))
        )
    return waves


def smooth_noise(rng: np.random.Generator, length: int) -> Floats:
    """Return white noise smoothed by a Gaussian of one of the widths: a stationary Gaussian process, variance 1."""
    width = float(rng.choice(WIDTHS))
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    smooth: Floats = np.convolve(rng.standard_normal(length + 2 * reach), kernel, mode="valid").astype(
        np.float64
    )
    return smooth


def _trend(rng: np.random.Generator, length: int) -> Floats:
    return rng.standard_normal() * np.linspace(-1.7, 1.7, length)


def _noise(rng: np.random.Generator, length: int) -> Floats:
    return _NOISE * rng.standard_normal(length)


def _shift(rng: np.random.Generator, length: int) -> Floats:
    return np.where(np.arange(length) < rng.integers(length + 1), 0.0, 1.0) * rng.standard_normal()


def _spikes(rng: np.random.Generator, length: int) -> Floats:
    at = rng.uniform(size=length) < 2 / max(length, 2)
    return np.asarray(at * 3 * rng.standard_normal(length))


_PARTS: tuple[Callable[[np.random.Generator, int], Floats], ...] = (
    *(season, smooth_noise, _noise),
    *(_trend, _shift, _spikes),
)
_CHANCES = (0.3, 0.25, 0.2, 0.15, 0.05, 0.05)
