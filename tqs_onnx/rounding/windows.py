"""Cuts the windows of a convolution out of its input, as rows of a matrix product. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def windows_of(
    activation: NDArray[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    margins: Sequence[tuple[int, int]],
    groups: int,
) -> NDArray[np.float64]:
    """Return the windows, float64 [group, windows, channels · kernel].

    Parameters
    ----------
    activation : array [batch, channels, place…]
    kernel, strides, dilations : sequence of int
        Per spatial axis.
    margins : sequence of (int, int)
        Zeros before and after each spatial axis; values are cut off where a number is negative.
    groups : int
    """
    rank = len(kernel)
    inside = tuple(
        slice(max(0, -before), size - max(0, -after))
        for (before, after), size in zip(margins, activation.shape[2:], strict=True)
    )
    widths = [(0, 0), (0, 0), *((max(0, before), max(0, after)) for before, after in margins)]
    padded = np.pad(activation[(slice(None), slice(None), *inside)], widths)
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
    windows = windows[(slice(None), slice(None), *steps)]
    batch, channels = windows.shape[:2]
    split = windows.reshape(batch, groups, channels // groups, *windows.shape[2:])
    # [batch, group, channel, place…, kernel…] → [group, batch, place…, channel, kernel…]
    places, taps = tuple(range(3, 3 + rank)), tuple(range(3 + rank, 3 + 2 * rank))
    ordered = split.transpose(1, 0, *places, 2, *taps)
    n_in = channels // groups * int(np.prod(kernel))
    return ordered.reshape(groups, -1, n_in).astype(np.float64)
