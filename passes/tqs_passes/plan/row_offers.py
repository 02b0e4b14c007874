"""Choose the width of each channel: row tiers offered to the allocator, based on the error of every channel.

The errors of channels are independent. For a price λ per byte, each channel therefore takes the width with the least
error + λ · bytes, and a sweep of λ gives the frontier. Every additional part costs nodes and a tensor, so each choice
is tried with four, three and two widths. Bytes are estimated first; choices that may pay are encoded and sized
exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_passes.encode.planes import plane_widths
from tqs_passes.encode.weight import Target, encode_codes
from tqs_passes.grids.grid import Codes, Grid, broadcast_shape
from tqs_passes.grids.row_tiers import MOST_WIDTHS, nearest_tier, part_grid, parts_of, written
from tqs_passes.plan.plan import ROW_FORMS, Assignment

_PRICES = 20
#: Approximate bytes of a plane besides its codes, and of row tiers besides planes and order.
_PLANE_BYTES = 110
_ROWS_BYTES = 120


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """One rounding of a weight with a scale per channel, from which row tiers are chosen.

    Parameters
    ----------
    draft : Assignment
    energies : float64 array ``[channels]``
        Error energy of each channel.
    halved : bool
        Its scales are stored as float16.
    """

    draft: Assignment
    energies: NDArray[np.float64]
    halved: bool


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """Row tiers of one weight.

    Parameters
    ----------
    draft : Assignment
    widths : uint8 array ``[channels]``
    energy : float
        Error energy.
    about : float
        Estimated bytes.
    """

    draft: Assignment
    widths: NDArray[np.uint8]
    energy: float
    about: float


def row_tiers(
    channels: Sequence[Channels], target: Target, plain: Sequence[tuple[int, float]]
) -> list[tuple[Assignment, dict[str, int]]]:
    """Return row tiers of a weight that may pay: assignments with exact bytes, and the bytes of shared pieces.

    Parameters
    ----------
    channels : sequence of Channels
        Roundings to one width each.
    target : Target
    plain : sequence of (int, float)
        Bytes and error energy of the candidates with one tier.
    """
    found: list[Mix] = []
    for axis in sorted({c.draft.axis for c in channels if c.draft.axis is not None}):
        # The scales of a weight share one type: a width with scales outside its range is left out.
        here = [c for c in channels if c.draft.axis == axis and c.halved == c.draft.half_scales]
        if len({c.draft.form for c in here}) != 1 or here[0].draft.form not in ROW_FORMS:
            continue  # one of its widths has a form that serves better than row tiers can
        for grid in Grid:
            by_width = {
                c.draft.tier.bits: c for c in here if c.draft.grid is part_grid(grid, c.draft.tier.bits)
            }
            if len(by_width) > 1:
                found.extend(_mixes(by_width, grid))
    promising: list[Mix] = []
    for mix in sorted(found, key=lambda m: (m.about, m.energy)):
        beaten = promising and promising[-1].energy <= mix.energy
        if not beaten and not any(n < mix.about and error <= mix.energy for n, error in plain):
            promising.append(mix)
    return [_sized(mix, target) for mix in promising]


def _mixes(by_width: Mapping[int, Channels], grid: Grid) -> Iterator[Mix]:
    draft = next(iter(by_width.values())).draft.model_copy(update={"grid": grid})
    assert draft.axis is not None
    n_channels = draft.shape[draft.axis]
    n_values = int(np.prod(draft.shape, dtype=np.int64)) // n_channels
    widths = np.array(sorted(by_width), np.uint8)
    energies = np.stack([by_width[int(b)].energies for b in widths], axis=1)
    sizes = widths.astype(np.float64) * (n_values / 8)
    fixed = n_channels * (3 if draft.half_scales else 5) + _ROWS_BYTES
    seen: set[bytes] = set()
    for choice in _choices(energies, sizes):
        chosen = widths[choice]
        if chosen.tobytes() in seen:
            continue
        seen.add(chosen.tobytes())
        planes = sum(max(1, len(plane_widths(int(b)))) for b in np.unique(chosen))
        energy = float(energies[np.arange(n_channels), choice].sum())
        yield Mix(draft, chosen, energy, fixed + float(sizes[choice].sum()) + planes * _PLANE_BYTES)


def _choices(energies: NDArray[np.float64], sizes: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """Yield the width index of every channel for each price, with two to `MOST_WIDTHS` distinct widths."""
    slopes = -np.diff(energies, axis=1) / np.diff(sizes)
    slopes = slopes[slopes > 0]
    if not slopes.size:
        return
    for price in np.geomspace(slopes.min(), slopes.max(), _PRICES):
        priced = energies + price * sizes
        allowed = np.unique(np.argmin(priced, axis=1))
        while len(allowed) > 1:
            if len(allowed) <= MOST_WIDTHS:
                yield allowed[np.argmin(priced[:, allowed], axis=1)]
            fewer = [np.delete(allowed, i) for i in range(len(allowed))]
            allowed = min(fewer, key=lambda kept: float(priced[:, kept].min(axis=1).sum()))


def _sized(mix: Mix, target: Target) -> tuple[Assignment, dict[str, int]]:
    a, rows = mix.draft, written(mix.widths)
    assert a.axis is not None
    assert a.grid is not None
    scales = np.zeros(broadcast_shape(a.shape, a.axis), np.float32)
    blank = Codes(
        np.broadcast_to(np.int8(0), a.shape),
        scales.astype(np.float16) if a.half_scales else scales,
        parts_of(rows, a.grid)[-1].bits,
        a.grid,
        a.axis,
        rows,
    )
    fragment = encode_codes(target, blank, a.form, a.encoding)
    update = {
        "tier": nearest_tier(rows),
        "rows": rows,
        "n_bytes": fragment.n_bytes(),
        "error_energy": mix.energy,
    }
    return a.model_copy(update=update), {k: piece.n_bytes() for k, piece in fragment.shared.items()}
