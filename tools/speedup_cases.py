"""The cases of `bench_speedup.py`: models, their rollouts and contexts.

Models of other people and the tables lie in `$TQS_DATA`; a case whose files are missing is left out, and said. The
transformer is that of `bench_sweep.py`, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from bench_sweep import REPLACE, TOKENS, WIDTH, transformer

from tools.study.real_cases import prepared, standardised
from tools.study.scored import Study
from tools.study.zoo import ZOO, data_root
from tqs_onnx.inputs.data import DataOptions

LORENZ = ZOO.parent / "tqs_models" / "lorenz96"


@dataclass(frozen=True, slots=True)
class Case:
    """A model, what it is rolled out on, and its batch if it is not that of the run."""

    model: Path
    data: DataOptions
    batch: int | None = None


def table(model: str, name: str, steps: int, most: int, most_eval: int) -> Callable[[Path], Case]:
    """Return the case of a model of the zoo on a table of `$TQS_DATA`."""

    def made(_: Path) -> Case:
        rollout, contexts = ZOO / model / "rollout.toml", data_root() / "ETT-small" / f"{name}.csv.gz"
        limits = {"steps": steps, "max_contexts": most, "max_eval_contexts": most_eval}
        return Case(ZOO / model / "model.onnx", DataOptions(rollout, contexts, **limits))

    return made


def grid(model: str) -> Callable[[Path], Case]:
    """Return the case of a model of the zoo on the Gulf; the first half of the starts scores, the second judges."""

    def made(folder: Path) -> Case:
        study = Study(folder)
        (scoring, _), (judging, _) = (study.contexts(model, half) for half in ("early", "late"))
        data = DataOptions(
            ZOO / model / "rollout.toml", scoring, judging, max_contexts=8, max_eval_contexts=8
        )
        return Case(ZOO / model / "model.onnx", data)

    return made


def lorenz(_: Path) -> Case:
    """Return the case of the bundled demo."""
    limits = {"steps": 20, "max_contexts": 8, "max_eval_contexts": 16}
    data = DataOptions(LORENZ / "rollout.toml", LORENZ / "contexts.npz", LORENZ / "eval.npz", **limits)
    return Case(LORENZ / "model.onnx", data)


def dtln(folder: Path) -> Case:
    """Return the case of the first model of DTLN: two LSTMs, on series taken for sound."""
    model = data_root() / "models" / "dtln" / "model_1.onnx"
    return Case(model, prepared("dtln_1", folder, standardised()))


def cyclone(_: Path) -> Case:
    """Return the case of a U-Net of 18 convolutions on 200 × 200 points, called once for one made context at a time."""
    model = data_root() / "models" / "cyclone" / "cyclone_model_200x200.onnx"
    return Case(model, DataOptions(contexts="made:2", evaluation="made:2:1"), batch=1)


def big(folder: Path) -> Case:
    """Return the case of the 76 MB transformer, called once on random states."""
    model, rollout = folder / "transformer.onnx", folder / "rollout.toml"
    if not model.exists():
        onnx.save(transformer(), model)
    rollout.write_text(REPLACE.format(steps=1), encoding="utf-8")
    rng = np.random.default_rng(1)
    sets = [{"x": 0.5 * rng.standard_normal((4, TOKENS, WIDTH)).astype(np.float32)} for _ in range(2)]
    return Case(model, DataOptions(rollout, *sets))


CASES: dict[str, Callable[[Path], Case]] = {
    "timesfm_mini": table("timesfm_mini", "ETTh1", 4, 7, 14),
    "pangu_mini": grid("pangu_mini"),
    "aurora_mini": grid("aurora_mini"),
    "lorenz96": lorenz,
    "lstm_ett": table("lstm_ett", "ETTm1", 12, 28, 56),
    "dtln_1": dtln,
    "cyclone": cyclone,
    "transformer": big,
}
"""How each case is made, in a folder of its own."""


def case_of(name: str, folder: Path) -> Case | None:
    """Return a case, with its files in `folder`; None if its model or its data are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        case = CASES[name](folder)
    except FileNotFoundError:
        return None
    paths = (case.model, case.data.contexts)
    return case if all(p.exists() for p in paths if isinstance(p, Path)) else None
