"""Where the models of the zoo and their data lie."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

ZOO = Path(__file__).resolve().parents[2] / "models" / "zoo"
TABLES = {
    "ETTh1": ("ETT-small/ETTh1.csv.gz", 14),
    "ETTh2": ("ETT-small/ETTh2.csv.gz", 14),
    "ETTm1": ("ETT-small/ETTm1.csv.gz", 14),
    "ETTm2": ("ETT-small/ETTm2.csv.gz", 14),
    "exchange_rate": ("exchange_rate/exchange_rate.csv.gz", 16),
    "weather": ("weather/weather.csv.gz", 21),
}
"""File of each table in `$TQS_DATA`, and number of scoring contexts: a multiple of its number of columns."""
GRIDS = ("pangu_mini", "aurora_mini")


def zoo_module(name: str) -> ModuleType:
    """Import a script of models/zoo."""
    sys.path.insert(0, str(ZOO))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ZOO))


def data_root() -> Path:
    """Return the folder of the data: ``$TQS_DATA``, or ``../shared/data`` beside the repository."""
    named = os.environ.get("TQS_DATA")
    return Path(named) if named else ZOO.parents[2] / "shared" / "data"
