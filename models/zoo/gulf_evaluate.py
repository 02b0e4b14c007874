"""Write the skill table of a gulf model's card: errors on 2007 beside persistence and the damped anomaly.

Usage, from the repository root and with h5py: ``python models/zoo/gulf_evaluate.py --model pangu_mini``;
``models/zoo/pangu_mini/evaluate.py`` is the same. A forecast starts every 6 h; RMSE is weighted by the cosine of
latitude, ACC is the correlation of anomalies about the climatology of the training rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from gulf import (
    HISTORY,
    SPLITS,
    Array,
    Judge,
    data_folder,
    load_gulf,
    skill_table,
    start_states,
    step_times,
)

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.spec import load_spec


def forecasts(model: Path, judge: Judge, history: int) -> Array:
    """Roll `model` out from the judge's starts, with the rollout.toml beside it.

    Returns
    -------
    numpy.ndarray
        float32 [starts, steps, 3, 7, 12].
    """
    arrays = {
        "state": start_states(judge.gulf, judge.starts, history),
        "time": step_times(judge.gulf, judge.starts, judge.steps),
    }
    spec = load_spec(model.with_name("rollout.toml")).with_steps(judge.steps)
    session = open_session(model, options=SessionOptions(threads=1))
    check_spec(spec, session.signature)
    trajectory = Engine(session, spec, Contexts(arrays, {}, None, source="ERA5"), batch=128).run()
    return np.asarray(trajectory.outputs["next"], np.float32)


def main(name: str | None = None) -> None:
    """Write the table to standard output, as Markdown."""
    parser = argparse.ArgumentParser(description="Write a gulf model's skill table.")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with era5_2003.nc ..")
    parser.add_argument("--model", default=name, required=name is None, choices=sorted(HISTORY))
    parser.add_argument("--split", default="test", choices=sorted(set(SPLITS) - {"train"}))
    parser.add_argument("--file", type=Path, help="default: the model.onnx of the model's folder")
    a = parser.parse_args()
    file = a.file or Path(__file__).parent / a.model / "model.onnx"
    judge = Judge(load_gulf(a.data), a.split, steps=8)
    sys.stdout.write(skill_table(judge, forecasts(file, judge, HISTORY[a.model]), a.model))


if __name__ == "__main__":
    main()
