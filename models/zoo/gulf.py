"""ERA5 over the Gulf as arrays, its climatology, and the errors every gulf model is judged by.

    era5_2003.nc .. era5_2007.nc -> states float32 [14608, 3, 7, 12], 3-hourly: u10, v10 (m/s), t2m (K)
      training 2003-01 .. 2006-09, validation 2006-10 .. 2006-12, test 2007; one model step is 6 h (two rows)
      climatology: least squares on 5 annual x 5 daily harmonics of the training rows, point by point
      damped anomaly: climatology + slope x today's anomaly, the slope fitted point by point and lead by lead

Errors are weighted by the cosine of latitude. The files are read with h5py and are not part of the repository.
A model with a history of two reads the states 6 h ago and now; the others read the state now.
This module must never import torch or onnxruntime.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

VARIABLES = ("u10", "v10", "t2m")
UNITS = ("m/s", "m/s", "K")
YEARS = (2003, 2004, 2005, 2006, 2007)
STRIDE = 2
"""Rows of one model step: 6 h."""
SPLITS = {
    "train": ("2003-01-01", "2006-10-01"),
    "validation": ("2006-10-01", "2007-01-01"),
    "test": ("2007-01-01", "2008-01-01"),
}
TIME_FEATURES = 8

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Gulf:
    """The grid in time: `states` float32 [rows, 3, 7, 12], `seconds` int64 [rows] since 1970, UTC."""

    states: Array
    seconds: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]

    def rows(self, split: str) -> tuple[int, int]:
        """Return the first row of a split and one past its last."""
        bounds = [np.datetime64(day, "s").astype(np.int64) for day in SPLITS[split]]
        first, stop = np.searchsorted(self.seconds, bounds)
        return int(first), int(stop)


def data_folder() -> Path:
    """Return the folder of the yearly files: below ``$TQS_DATA``, or ``../shared/data`` beside the repository."""
    named = os.environ.get("TQS_DATA")
    root = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return root / "gridded" / "era5_gulf"


def load_gulf(folder: Path) -> Gulf:
    """Read the five yearly files.

    Raises
    ------
    FileNotFoundError
        A file is not in `folder`.
    ValueError
        The rows are not 3 h apart, or a value is not finite.
    """
    states: list[Array] = []
    seconds: list[NDArray[np.int64]] = []
    latitude = longitude = np.empty(0)
    for year in YEARS:
        path = folder / f"era5_{year}.nc"
        if not path.is_file():
            raise FileNotFoundError(path)
        with h5py.File(path) as file:
            states.append(np.stack([np.asarray(file[v], np.float32) for v in VARIABLES], axis=1))
            seconds.append(np.asarray(file["valid_time"], np.int64))
            latitude, longitude = np.asarray(file["latitude"]), np.asarray(file["longitude"])
    gulf = Gulf(np.concatenate(states), np.concatenate(seconds), latitude, longitude)
    if not (np.diff(gulf.seconds) == 3 * 3600).all() or not np.isfinite(gulf.states).all():
        raise ValueError("the rows are not 3 h apart, or a value is not finite")
    return gulf


def time_features(seconds: NDArray[np.int64]) -> Array:
    """Return float32 [n, 8]: sine and cosine of the hour, twice the hour, the day of the year and twice it."""
    day = 2 * np.pi * (seconds % 86400) / 86400
    year = 2 * np.pi * (seconds / 86400 % 365.2425) / 365.2425
    angles = (day, 2 * day, year, 2 * year)
    return np.stack([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


def climatology(gulf: Gulf) -> Array:
    """Return the climatological state of every row, shape and dtype of the states, fitted to training rows."""
    features = time_features(gulf.seconds).astype(np.float64)
    one = np.ones((len(features), 1))
    daily, annual = np.hstack([one, features[:, :4]]), np.hstack([one, features[:, 4:]])
    basis = (daily[:, :, None] * annual[:, None, :]).reshape(len(features), -1)
    train = slice(*gulf.rows("train"))
    flat = gulf.states.reshape(len(features), -1)
    factors = np.linalg.lstsq(basis[train], flat[train].astype(np.float64), rcond=None)[0]
    return (basis @ factors).astype(np.float32).reshape(gulf.states.shape)


HISTORY = {"pangu_mini": 1, "aurora_mini": 2}
"""States each model reads."""


def start_states(gulf: Gulf, rows: NDArray[np.int64], history: int) -> Array:
    """Return what a model reads at `rows`: float32 [n, 3, 7, 12], or [n, history, 3, 7, 12] with a history."""
    if history == 1:
        return gulf.states[rows]
    return gulf.states[rows[:, None] + STRIDE * np.arange(1 - history, 1)]


def step_times(gulf: Gulf, rows: NDArray[np.int64], steps: int) -> Array:
    """Return the time encodings float32 [n, steps, 8] of the state that each step of a forecast starts from."""
    return time_features(gulf.seconds)[rows[:, None] + STRIDE * np.arange(steps)]


@dataclass(frozen=True, slots=True)
class Skill:
    """Errors by step and variable, float64 [steps, 3] each: `rmse` in the variable's unit, `correlation`."""

    rmse: NDArray[np.float64]
    correlation: NDArray[np.float64]


class Judge:
    """Compares forecasts with ERA5 for starts of one split.

    Parameters
    ----------
    gulf : Gulf
    split : str
        "validation" or "test".
    steps : int
        Lead times judged: 1 .. `steps` times 6 h.
    every : int
        Rows between two starts; 2 starts a forecast every 6 h.
    """

    def __init__(self, gulf: Gulf, split: str, steps: int, every: int = STRIDE) -> None:
        first, stop = gulf.rows(split)
        self.gulf, self.steps = gulf, steps
        self.starts = np.arange(first + STRIDE, stop - STRIDE * steps, every)
        self.normal = climatology(gulf)
        self.area = np.cos(np.radians(gulf.latitude))[:, None] / np.cos(np.radians(gulf.latitude)).mean()

    def truth(self, step: int) -> Array:
        """Return float32 [starts, 3, 7, 12]: ERA5 at `step`."""
        return self.gulf.states[self.starts + STRIDE * step]

    def skill(self, forecasts: Array) -> Skill:
        """Judge float32 [starts, steps, 3, 7, 12]: root mean square error and anomaly correlation."""
        rmse: list[NDArray[np.float64]] = []
        correlation: list[NDArray[np.float64]] = []
        for step in range(1, self.steps + 1):
            truth = self.truth(step).astype(np.float64)
            made = forecasts[:, step - 1].astype(np.float64)
            rmse.append(np.sqrt((self.area * (made - truth) ** 2).mean(axis=(0, 2, 3))))
            normal = self.normal[self.starts + STRIDE * step]
            a, b = made - normal, truth - normal
            cross = [(self.area * x * y).mean(axis=(0, 2, 3)) for x, y in ((a, b), (a, a), (b, b))]
            correlation.append(cross[0] / np.sqrt(cross[1] * cross[2] + 1e-300))
        return Skill(np.array(rmse), np.array(correlation))

    def persistence(self) -> Array:
        """Return the forecasts that repeat the start."""
        return np.repeat(self.gulf.states[self.starts][:, None], self.steps, axis=1)

    def damped(self) -> Array:
        """Return climatology plus the damped anomaly of the start."""
        first, stop = self.gulf.rows("train")
        anomaly = (self.gulf.states - self.normal).astype(np.float64)
        made = np.empty((len(self.starts), self.steps, *self.gulf.states.shape[1:]), np.float32)
        for step in range(1, self.steps + 1):
            lead = STRIDE * step
            now, later = anomaly[first : stop - lead], anomaly[first + lead : stop]
            slope = (now * later).sum(0) / (now * now).sum(0)
            made[:, step - 1] = self.normal[self.starts + lead] + slope * anomaly[self.starts]
        return made


def skill_table(judge: Judge, forecasts: Array, name: str, leads: tuple[int, ...] = (1, 2, 4, 8)) -> str:
    """Return a Markdown table of `forecasts` beside persistence and the damped anomaly."""
    rows = [judge.skill(f) for f in (forecasts, judge.persistence(), judge.damped())]
    lines = [
        f"| lead | variable | {name} RMSE | persistence | damped anomaly "
        f"| {name} / damped | {name} ACC | damped ACC |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for step in (s for s in leads if s <= judge.steps):
        for v, (variable, unit) in enumerate(zip(VARIABLES, UNITS, strict=True)):
            model, last, damped = (float(r.rmse[step - 1, v]) for r in rows)
            acc, damped_acc = (float(rows[i].correlation[step - 1, v]) for i in (0, 2))
            lines.append(
                f"| {6 * step} h | {variable} ({unit}) | {model:.3f} | {last:.3f} | {damped:.3f} "
                f"| {model / damped:.3f} | {acc:.3f} | {damped_acc:.3f} |"
            )
    return "\n".join(lines) + "\n"
