"""Measure the skill of the bundled model: one-step error, forecast error, and its own largest Lyapunov exponent.

``python -m tqs_models.lorenz96.skill`` writes one JSON object, which the card quotes. The run takes about ten
seconds on one core.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tqs_models.lorenz96 import files, system
from tqs_onnx.rollout.session import SessionOptions, open_session

FLOAT32_DISTANCE = 1e-2
"""Distance of the twins for a map computed in float32: far above its rounding error (about 1e-6), far below 3.6."""


@dataclass(frozen=True, slots=True)
class Skill:
    """Figures of one model against Runge-Kutta truth.

    Parameters
    ----------
    one_step_error : float
        Root mean square error after one step, divided by the deviation of the climate.
    error_after : dict of int to float
        The same error after this many steps of the model fed with its own output.
    exponent, true_exponent : float
        Largest Lyapunov exponent of the model and of the system, per time unit, estimated in the same way.
    deviation, true_deviation : float
        Deviation of the states after 400 steps, of the model and of the system.
    """

    one_step_error: float
    error_after: dict[int, float]
    exponent: float
    true_exponent: float
    deviation: float
    true_deviation: float


class Stepper:
    """The model at `path` as a map from float64 [n, 40] to the same shape."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path, options=SessionOptions(threads=1))

    def __call__(self, x: system.Float64) -> system.Float64:
        """Return the states one step later; input and output are rounded to float32."""
        value = self._session.value(x.astype(np.float32))
        return self._session.run({"state": value})["next"].numpy().astype(np.float64)


def measure(path: Path, *, members: int = 32, steps: int = 600, seed: int = 4001) -> Skill:
    """Measure the model at `path` from `members` states that are in no other file.

    Raises
    ------
    InputError
        The model does not load or does not run.
    """
    step = Stepper(path)
    start = system.climate(members, seed)
    truth = system.trajectory(start, 60)
    scale = float(truth.std())
    x, errors = start, dict[int, float]()
    for t in range(60):
        x = step(x)
        errors[t + 1] = float(np.sqrt(np.square(x - truth[:, t]).mean())) / scale
    free, true = x, truth[:, -1]
    for _ in range(340):
        free, true = step(free), system.advance(true)
    return Skill(
        one_step_error=errors[1],
        error_after={t: errors[t] for t in (10, 20, 40, 60)},
        exponent=system.lyapunov(step, start, steps=steps, settle=100, distance=FLOAT32_DISTANCE),
        true_exponent=system.lyapunov(system.advance, start, steps=steps, settle=100),
        deviation=float(free.std()),
        true_deviation=float(true.std()),
    )


def main() -> None:
    """Write the figures of the bundled model to standard output."""
    json.dump(asdict(measure(files().model)), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
