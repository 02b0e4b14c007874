"""Pangu-Weather: inputs and outputs of the released 6 h file, and its partition into blocks.

    pangu_weather_6.onnx: input [5, 13, 721, 1440], input_surface [4, 721, 1440] -> output, output_surface
    rollout: both outputs are fed back unchanged; no history, no time, no maps (they are inside the file)

The file needs no export, only this adapter. Its weights are licensed CC BY-NC-SA 4.0 and are not part of this
package; :mod:`tqs_models.pangu.shaped` builds a model of the same structure and any size, with random weights.
Source: https://github.com/198808xc/Pangu-Weather. Importing this package needs neither torch nor a runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Literal

LEVELS = (1000, 925, 850, 700, 600, 500, 400, 300, 250, 200, 150, 100, 50)
"""Pressure levels in hPa, in the order of the second axis of `input`."""
UPPER = {"z": "m²/s²", "q": "kg/kg", "t": "K", "u": "m/s", "v": "m/s"}
"""Variables of `input`, in order, with the unit of the file."""
SURFACE = {"msl": "Pa", "u10": "m/s", "v10": "m/s", "t2m": "K"}
"""Variables of `input_surface`, in order, with the unit of the file."""
LATITUDES, LONGITUDES = 721, 1440
"""Rows from 90° north to 90° south, columns from 0° to 359.75° east."""
SESSION_OPTIONS = {"enable_cpu_mem_arena": False, "enable_mem_pattern": False, "enable_mem_reuse": False}
"""Settings of the official code, which keep the memory of a step near 10 GB on the CPU."""
LICENCE = "CC-BY-NC-SA-4.0"

BLOCK_SIZE = 8
"""Number of stored tensors in one block of the paper's sensitivity analysis."""
SMALL_BLOCKS = 17
"""Blocks 0 .. 16 hold embeddings, biases and norms; the others hold recovery, matrices and bias tables."""

Bucket = Literal["io.input", "body", "body.other"]
_INPUT_BLOCKS = frozenset({0, 1, 2, 15, 16})


def rollout() -> Path:
    """Return the path of the rollout spec (the package must not be in a zip archive).

    >>> rollout().name
    'rollout.toml'
    """
    return Path(str(resources(__name__))) / "rollout.toml"


def blocks(weights: Sequence[str], size: int = BLOCK_SIZE) -> tuple[tuple[str, ...], ...]:
    """Split stored tensors, in the order of the file, into blocks of `size`; the last one may be smaller.

    The released file holds 223 tensors: 140 that kept their name (4 of the patch embedding, 8 vectors of each
    of the 16 transformer blocks, 4 of down- and up-sampling, 4 of the recovery), then 83 matrices and bias
    tables in the order of the nodes. This gives the paper's 28 blocks.

    >>> blocks(["a", "b", "c"], size=2)
    (('a', 'b'), ('c',))
    """
    return tuple(tuple(weights[i : i + size]) for i in range(0, len(weights), size))


def bucket(block: int) -> Bucket:
    """Return the role of a block by its number, after appendix A.8 of the paper.

    >>> [bucket(i) for i in (0, 3, 17)]
    ['io.input', 'body.other', 'body']
    """
    if block >= SMALL_BLOCKS:
        return "body"
    return "io.input" if block in _INPUT_BLOCKS else "body.other"


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
    """Write a Pangu-shaped model with random weights, its rollout spec and contexts; see `write_shaped`."""
    from tqs_models.pangu.write import write_shaped

    return write_shaped(folder, checkpoint, grid, levels, seed, contexts, settings or {})
