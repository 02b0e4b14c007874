"""The bundled demo model: a neural surrogate of the Lorenz-96 system, with its rollout spec and contexts.

The files are inside the package, so the demo needs no network and no data. Importing this package needs neither torch
nor a runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LorenzFiles:
    """Paths of the demo's files.

    Parameters
    ----------
    model : pathlib.Path
        model.onnx: `state` float32 [batch, 40] -> `next` float32 [batch, 40], 0.05 time units later.
    rollout : pathlib.Path
        rollout.toml.
    contexts : pathlib.Path
        contexts.npz: `state` float32 [32, 40], for scoring.
    evaluation : pathlib.Path
        eval.npz: `state` float32 [64, 40] and `truth/next` float32 [64, 40 steps, 40], for evaluation.
    """

    model: Path
    rollout: Path
    contexts: Path
    evaluation: Path


def files() -> LorenzFiles:
    """Return the paths of the bundled files (the package must not be in a zip archive).

    >>> files().model.name
    'model.onnx'
    """
    folder = Path(str(resources(__name__)))
    return LorenzFiles(
        folder / "model.onnx", folder / "rollout.toml", folder / "contexts.npz", folder / "eval.npz"
    )
