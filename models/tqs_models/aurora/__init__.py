"""Aurora-small: exports the package's network as a step graph on plain tensors, with its rollout spec.

    surf [1, 2, 4, H, W], atmos [1, 2, 5, C, H, W]   6 h ago and now, physical units
    static [3, H, W], time_encoding [1, D]           -> surf_next [1, 4, H, W], atmos_next [1, 5, C, H, W]
    rollout: the history of two states is shifted; the encoding of the absolute time is given for each step

H must be a multiple of 4 (the package first crops the 721st row). Position, scale, level and lead-time encodings
are constants of the graph. Weights keep the names of the package. Source: the PyTorch package `microsoft-aurora`
and Bodnar et al., Nature 641 (2025). Importing this package needs neither torch nor aurora; `export` needs both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files as resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SURFACE = {"2t": "K", "10u": "m/s", "10v": "m/s", "msl": "Pa"}
STATIC = ("lsm", "z", "slt")
ATMOS = {"z": "m²/s²", "u": "m/s", "v": "m/s", "t": "K", "q": "kg/kg"}
LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
HOURS = 6
LICENCE = "MIT"


def rollout() -> Path:
    """Return the path of the rollout spec (the package must not be in a zip archive).

    >>> rollout().name
    'rollout.toml'
    """
    return Path(str(resources(__name__))) / "rollout.toml"


def time_encoding(times: Sequence[datetime], width: int = 256) -> NDArray[np.float32]:
    """Return sines and cosines of each time over periods of 1 h to one year, float32 [times, width].

    Parameters
    ----------
    times : sequence of datetime
        The time of the newest state at each step; a naive time counts as local time, as in the package.
    width : int
        Width of the model's encoding.

    >>> time_encoding([datetime(2020, 6, 1, 12)]).shape
    (1, 256)
    """
    hours = np.array([np.float32(t.timestamp() / 3600) for t in times], dtype=np.float64)
    period = np.logspace(0, np.log10(24 * 365.25), width // 2)
    angle = hours[:, None] * (2 * np.pi / period)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def export(
    folder: Path,
    *,
    checkpoint: Path | None = None,
    grid: tuple[int, int] | None = None,
    levels: tuple[int, ...] | None = None,
    seed: int = 0,
    contexts: int = 0,
    settings: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Write model.onnx, rollout.toml and random contexts into `folder`; see `write_aurora`."""
    from tqs_models.aurora.write import write_aurora

    return write_aurora(
        folder, checkpoint, grid or (32, 64), levels or LEVELS, seed, contexts, settings or {}
    )
