"""Computes the scores of the zoo: which model, on which contexts, by which probe, as weights or as blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.study.runs import Runs
from tools.study.zoo import GRIDS, TABLES, ZOO, data_root, zoo_module
from tqs_onnx.scoring.scores import Scores, read_scores

HALVES = ("early", "late")
STARTS = 32
"""Starts in the validation months of a grid model; 16 of each half are scored."""
DRAWS = 2


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
        path, count = self.contexts(model, name)
        words = ["score", ZOO / model / "model.onnx", "--rollout", ZOO / model / "rollout.toml"]
        words += ["--contexts", path, "--max-contexts", str(count)]
        words += ["--probe", "both", "--draws", str(DRAWS), "--response-bits", "none"]
        words += ["--blocks", "auto"] if blocks else []
        run = Runs(self.folder, self.threads).run(f"{model}.{name}{'.blocks' if blocks else ''}", *words)
        return {
            "quant": read_scores(run / "scores.json"),
            "gauss": read_scores(run / "scores.gauss.json"),
        }
