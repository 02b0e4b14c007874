"""TimesFM-2.5: exports the package's network as a stateless forecast graph, with its rollout spec.

    context [b, 32 n], mask [b, 32 n] (true: padding) -> forecast [b, 128, 10], quantile_head [b, 1024, 10]
    channels: mean, then quantiles 0.1 .. 0.9; channel 5 is the median
    rollout: the median is appended to the context, 512 -> 640 -> 768 -> 896 values; 512 forecast, 500 kept

The running normalisation is inside the graph. The key-value cache is not, because it affects only speed. Weights
keep the names of the package. Source: the PyTorch package `timesfm` and Das et al., ICML 2024. Importing this
package needs neither torch nor timesfm; `export` needs both.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path

PATCH, OUTPUT, HEAD, CHANNELS, MEDIAN = 32, 128, 1024, 10, 5
LICENCE = "Apache-2.0"


def rollout() -> Path:
    """Return the path of the rollout spec (the package must not be in a zip archive).

    >>> rollout().name
    'rollout.toml'
    """
    return Path(str(resources(__name__))) / "rollout.toml"


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
    """Write model.onnx, rollout.toml and random contexts into `folder`; see `write_timesfm`."""
    from tqs_models.timesfm.write import write_timesfm

    return write_timesfm(folder, checkpoint, grid or levels, seed, contexts, settings or {})
