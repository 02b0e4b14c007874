"""Computes the scores for the zoo study: which model, on which contexts, by which probe, as weights or as blocks.

Each is a run directory of `tqs score`; existing ones are not scored again.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from tqs_onnx.cli.main import main as tqs
from tqs_onnx.scoring.scores import Scores, read_scores

ZOO = Path(__file__).resolve().parents[1] / "models" / "zoo"
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
HALVES = ("early", "late")
STARTS = 32
"""Starts in the validation months of a grid model; 16 of each half are scored."""
DRAWS = 2


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


@dataclass(frozen=True, slots=True)
class Study:
    """Computes the scores of the study and stores its runs in a folder.

    Parameters
    ----------
    folder : Path
    threads : int
    """

    folder: Path
    threads: int = 1

    def sets(self, model: str) -> tuple[str, ...]:
        """Return the names of the sets of contexts on which a model is scored."""
        return HALVES if model in GRIDS else tuple(TABLES)

    def contexts(self, model: str, name: str) -> tuple[Path, int]:
        """Return the contexts file of a set, written if missing, and the number of its contexts to score."""
        if model not in GRIDS:
            return data_root() / TABLES[name][0], TABLES[name][1]
        path = self.folder / f"{model}.{name}.npz"
        if not path.is_file():
            gulf = zoo_module("gulf")
            split = "test" if name == "test" else "validation"
            count = STARTS if split == "validation" else STARTS // 2
            arrays = zoo_module("gulf_contexts").contexts(
                gulf.load_gulf(gulf.data_folder()), model, split, 8, count
            )
            half = count // 2
            rows = {"early": slice(0, half), "late": slice(half, None)}.get(name, slice(None))
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **{k: a[rows] for k, a in arrays.items()})
        return path, STARTS // 2

    def scores(self, model: str, name: str, *, blocks: bool = False) -> dict[str, Scores]:
        """Return the scores of a model on a set, by probe: quant and gauss."""
        out = self.folder / f"{model}.{name}{'.blocks' if blocks else ''}"
        files = {"quant": out / "scores.json", "gauss": out / "scores.gauss.json"}
        if not all(f.is_file() for f in files.values()):
            path, count = self.contexts(model, name)
            arguments = ["score", str(ZOO / model / "model.onnx"), "--contexts", str(path)]
            arguments += ["--rollout", str(ZOO / model / "rollout.toml"), "--max-contexts", str(count)]
            arguments += ["--probe", "both", "--draws", str(DRAWS), "--response-bits", "none"]
            arguments += ["--threads", str(self.threads), "--out", str(out), "--json"]
            arguments += ["--blocks", "auto"] if blocks else []
            code = tqs(arguments)
            if code:
                raise SystemExit(f"tqs {' '.join(arguments)} ended with {code}")
        return {probe: read_scores(file) for probe, file in files.items()}


def main() -> None:
    """Score everything that the study reads, into the folder that the command line names."""
    study = Study(Path(sys.argv[1]))
    for model in ("timesfm_mini", *GRIDS):
        for name in study.sets(model):
            study.scores(model, name)
        study.scores(model, study.sets(model)[0], blocks=True)


if __name__ == "__main__":
    main()
