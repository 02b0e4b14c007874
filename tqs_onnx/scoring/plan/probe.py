"""Probes: one perturbation δθ of one weight (paper, A.1.1).

``quant``  δθ = Q_b(θ) − θ, the residual of symmetric b-bit rounding, deterministic;
``gauss``  δθ = σ·z, z ~ N(0, I), σ chosen so that ‖δθ‖_F equals that of the quant residual.

Gaussian draws come from a counter-based generator keyed by (seed, weight name, draw), so they depend neither on the
order of the sweep, nor on the worker, nor on a resume. NumPy only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_passes.grids.grid import rtn

#: Number of values that are perturbed at a time.
_BLOCK = 1 << 16


class ProbeKind(StrEnum):
    """The kind of perturbation that a probe applies (see module docstring)."""

    QUANT = "quant"
    GAUSS = "gauss"


@dataclass(frozen=True, slots=True)
class Probe:
    """The perturbation that is applied to every weight in turn.

    Parameters
    ----------
    kind : ProbeKind
    bits : int
        b of Q_b, 2 to 8; the paper uses 6.
    per_channel : bool
        Q_b uses one scale per channel of a matrix instead of one per tensor (the paper's choice, A.4).
    draws : int
        Independent Gaussian draws; the quant probe has one.
    seed : int
    """

    kind: ProbeKind = ProbeKind.QUANT
    bits: int = 6
    per_channel: bool = False
    draws: int = 1
    seed: int = 0

    @property
    def n_draws(self) -> int:
        """Number of rollouts per weight."""
        return self.draws if self.kind is ProbeKind.GAUSS else 1


def generator(seed: int, name: str, draw: int) -> np.random.Generator:
    """Return the counter-based generator of one draw of one weight."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{draw}".encode("utf-8", "surrogateescape")).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def residual(theta: NDArray[Any], bits: int, axis: int | None) -> NDArray[np.float64]:
    """Return Q_b(θ) − θ in float64, shape of θ."""
    single = np.ascontiguousarray(theta).astype(np.float32)
    return rtn(single, bits, axis).astype(np.float64) - np.asarray(theta).astype(np.float64)


def perturbed(
    theta: NDArray[Any], probe: Probe, name: str, draw: int, axis: int | None
) -> tuple[NDArray[Any], float]:
    """Return θ + δθ in the dtype of θ, and ‖δθ‖² after rounding to that dtype.

    Parameters
    ----------
    theta : float array
    probe : Probe
    name : str
        Name of the weight: part of the generator's key.
    draw : int
    axis : int or None
        Channel axis for `probe.per_channel`.
    """
    flat = np.ascontiguousarray(theta).reshape(-1)
    single = flat.reshape(theta.shape).astype(np.float32, copy=False)
    rounded = rtn(single, probe.bits, axis if probe.per_channel else None).reshape(-1)
    moved = np.empty_like(flat)
    noise: NDArray[np.float64] | None = None
    factor = 0.0
    if probe.kind is ProbeKind.GAUSS:
        noise = generator(probe.seed, name, draw).standard_normal(flat.size)
        norm = float(np.linalg.norm(noise))
        size = math.sqrt(sum(_square(rounded[b].astype(np.float64) - flat[b]) for b in _blocks(flat.size)))
        factor = size / norm if norm > 0 else 0.0
    total = 0.0
    for block in _blocks(flat.size):
        exact = flat[block].astype(np.float64)
        delta = rounded[block].astype(np.float64) - exact if noise is None else noise[block] * factor
        moved[block] = (exact + delta).astype(theta.dtype)
        total += _square(moved[block].astype(np.float64) - exact)
    return moved.reshape(theta.shape), total


def _blocks(n: int) -> Iterator[slice]:
    """Split n values into blocks that fit the cache, so that no float64 copy of a large weight is needed."""
    for start in range(0, n, _BLOCK):
        yield slice(start, start + _BLOCK)


def _square(values: NDArray[np.float64]) -> float:
    return float(np.sum(values * values))
