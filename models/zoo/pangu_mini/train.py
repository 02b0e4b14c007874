"""Train pangu_mini on ERA5 over the Gulf and write model.onnx.

Usage, from the repository root and with the [export] extra and h5py:
``python models/zoo/pangu_mini/train.py --data FOLDER --out FOLDER --minutes 4 --device cuda``.
See ../gulf_training.py for what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from gulf_training import Constants, run
from network import PanguMini


def build(fixed: Constants, dropout: float) -> PanguMini:
    """Return the untrained model."""
    return PanguMini(fixed.mean, fixed.deviation, fixed.change, fixed.maps, dropout)


if __name__ == "__main__":
    run("pangu_mini", build, 1, Path(__file__).parent)
