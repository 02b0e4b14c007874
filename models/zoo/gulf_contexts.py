"""Write contexts for a gulf model: starts of the validation months or the test year, with times and truth.

Usage, from the repository root and with h5py:
``python models/zoo/gulf_contexts.py --data FOLDER --model pangu_mini --split validation --out F.npz``.
The file is made of ERA5 data: whoever passes it on must name the source (see the model's card).

    state       [n, 3, 7, 12], or [n, 2, 3, 7, 12] (6 h ago, now)
    time        [n, steps, 8]
    truth/next  [n, steps, 3, 7, 12]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from gulf import HISTORY, SPLITS, STRIDE, Gulf, data_folder, load_gulf, start_states, step_times


def contexts(gulf: Gulf, model: str, split: str, steps: int, count: int) -> dict[str, np.ndarray]:
    """Return the arrays of `count` starts, evenly spread over a split, at all eight hours of the day in turn.

    Raises
    ------
    ValueError
        The split does not hold so many starts.
    """
    first, stop = gulf.rows(split)
    first, stop = first + STRIDE, stop - STRIDE * steps
    rows = np.unique(np.linspace(first, stop - 1, count).astype(np.int64))
    if len(rows) < count or stop - first < count:
        raise ValueError(f"{split} holds {max(stop - first, 0)} starts, fewer than {count}")
    rows = np.clip(rows - rows % 8 + np.arange(count) % 8, first, stop - 1)
    return {
        "state": start_states(gulf, rows, HISTORY[model]),
        "time": step_times(gulf, rows, steps),
        "truth/next": gulf.states[rows[:, None] + STRIDE * np.arange(1, steps + 1)],
        "latitude": gulf.latitude,
    }


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write contexts for a gulf model.")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with era5_2003.nc ..")
    parser.add_argument("--model", required=True, choices=sorted(HISTORY))
    parser.add_argument("--split", required=True, choices=sorted(SPLITS))
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--steps", type=int, default=8, help="steps of 6 h")
    parser.add_argument("--count", type=int, default=48, help="starts")
    a = parser.parse_args()
    np.savez_compressed(a.out, **contexts(load_gulf(a.data), a.model, a.split, a.steps, a.count))


if __name__ == "__main__":
    main()
