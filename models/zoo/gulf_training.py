"""Train a gulf model for a given number of minutes, keep its best average, and write model.onnx.

    first `--one-step` of the time: one 6 h step; then rollouts of 2, 3 and 4 steps, each prediction fed back
    loss: mean squared error in units of each variable's anomalies, weighted by the cosine of latitude
    a sample starts at any 3-hourly row of the training months; inputs get a little noise
    kept: the averaged weights with the lowest error of four steps on the validation months,
          in units of the damped anomaly's error

How many updates fit in the minutes depends on the machine, so a run is not repeatable bit by bit; the number
is logged. This module must never import onnxruntime.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gulf import STRIDE, Gulf, Judge, data_folder, load_gulf, skill_table, time_features
from torch import Tensor, nn

from tqs_models.lean import export_named

log = logging.getLogger("gulf")

LICENCE = (
    "CC-BY-4.0. Trained on ERA5: contains modified Copernicus Climate Change Service information; neither the "
    "European Commission nor ECMWF is responsible for any use"
)
ROLLOUT = 4
NOISE = 0.03
"""Deviation of the noise on the inputs, in deviations of the states."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line sets."""

    minutes: float
    batch: int
    peak: float
    dropout: float
    decay: float
    seed: int
    device: str
    one_step: float
    resume: Path | None


@dataclass(frozen=True, slots=True)
class Constants:
    """Of the training rows: float32 [3] each, and six standardised maps float32 [6, 7, 12]."""

    mean: Tensor
    deviation: Tensor
    change: Tensor
    maps: Tensor


def constants(gulf: Gulf) -> Constants:
    """Return what the networks hold as constants.

    The maps: latitude, longitude, mean of each variable, and the daily range of t2m, which tells land and sea.
    """
    states = gulf.states[slice(*gulf.rows("train"))]
    days = states[: len(states) // 8 * 8, 2].reshape(-1, 8, *states.shape[2:])
    daily = (days.max(axis=1) - days.min(axis=1)).mean(axis=0)
    latitude, longitude = np.meshgrid(gulf.latitude, gulf.longitude, indexing="ij")
    maps = np.stack([latitude, longitude, *states.mean(axis=0), daily])
    maps = (maps - maps.mean(axis=(1, 2), keepdims=True)) / maps.std(axis=(1, 2), keepdims=True)
    change = (states[STRIDE:] - states[:-STRIDE]).std(axis=(0, 2, 3))
    arrays = (states.mean(axis=(0, 2, 3)), states.std(axis=(0, 2, 3)), change, maps)
    return Constants(*(torch.from_numpy(np.asarray(a, np.float32)) for a in arrays))


class Field:
    """All states and times on one device, and rollouts over them; `history`: past states a model reads."""

    def __init__(self, gulf: Gulf, history: int, device: str) -> None:
        self.states = torch.from_numpy(gulf.states).to(device)
        self.times = torch.from_numpy(time_features(gulf.seconds)).to(device)
        self.history = history

    def start(self, rows: Tensor) -> Tensor:
        """Return what the model reads at `rows`: [b, 3, 7, 12], or [b, history, 3, 7, 12] with a history."""
        if self.history == 1:
            return self.states[rows]
        back = torch.arange(1 - self.history, 1, device=rows.device) * STRIDE
        return self.states[rows[:, None] + back]

    def rollout(self, model: nn.Module, rows: Tensor, steps: int, noise: Tensor | None = None) -> Tensor:
        """Return the forecasts [b, steps, 3, 7, 12] from `rows`."""
        state = self.start(rows)
        if noise is not None:
            state = state + noise * torch.randn_like(state)
        made = []
        for step in range(steps):
            made.append(model(state, self.times[rows + STRIDE * step]))
            last = made[-1]
            state = last if self.history == 1 else torch.cat([state[:, 1:], last.unsqueeze(1)], dim=1)
        return torch.stack(made, dim=1)


def forecasts(model: nn.Module, field: Field, judge: Judge) -> np.ndarray:
    """Return the forecasts float32 [starts, steps, 3, 7, 12] of a judge's starts."""
    rows = torch.from_numpy(judge.starts).to(field.states.device)
    with torch.no_grad():
        return torch.cat([field.rollout(model, part, judge.steps) for part in rows.split(1024)]).cpu().numpy()


def train(gulf: Gulf, build: Callable[[Constants, float], nn.Module], history: int, s: Settings) -> nn.Module:
    """Return the averaged model with the lowest validation error, on the CPU."""
    torch.manual_seed(s.seed)
    fixed = constants(gulf)
    model = build(fixed, s.dropout).to(s.device)
    if s.resume is not None:
        model.load_state_dict(torch.load(s.resume, weights_only=True))
    mean_model = copy.deepcopy(model).eval()
    best, best_error = copy.deepcopy(mean_model), math.inf
    field = Field(gulf, history, s.device)
    judge = Judge(gulf, "validation", ROLLOUT, every=7 if s.device == "cpu" else 1)
    damped = judge.skill(judge.damped()).rmse
    first, stop = gulf.rows("train")
    first, stop = first + STRIDE, stop - STRIDE * ROLLOUT
    anomaly = (gulf.states - judge.normal)[first:stop].std(axis=(0, 2, 3))
    unit = torch.from_numpy(anomaly).to(s.device).reshape(1, 1, 3, 1, 1)
    noise = NOISE * fixed.deviation.to(s.device).reshape(3, 1, 1)
    area = torch.from_numpy(judge.area[None, None, None].astype(np.float32)).to(s.device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": s.decay}, {"params": vectors, "weight_decay": 0.0}],
        s.peak,
        betas=(0.9, 0.98),
    )
    begin, update, judged = time.monotonic(), 0, 0
    while (part := (time.monotonic() - begin) / (60 * s.minutes)) < 1:
        late = (part - s.one_step) / (1 - s.one_step)
        steps = 1 if part < s.one_step else 2 + min(2, int(3 * late))
        update += 1
        for group in optimiser.param_groups:
            group["lr"] = s.peak * min(1.0, update / 200) * (0.01 + 0.495 * (1 + math.cos(math.pi * part)))
        rows = torch.randint(first, stop, (s.batch,), device=s.device)
        made = field.rollout(model, rows, steps, noise)
        truth = torch.stack([field.states[rows + STRIDE * k] for k in range(1, steps + 1)], dim=1)
        loss = (((made - truth) / unit).square() * area).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.998, update / (update + 20))
        with torch.no_grad():
            means, now = list(mean_model.parameters()), [p.data for p in model.parameters()]
            torch._foreach_lerp_(means, now, 1 - keep)
        if part >= (judged + 1) / 20:
            judged = int(20 * part)
            error = judge.skill(forecasts(mean_model, field, judge)).rmse / damped
            parts = " ".join(f"{6 * k + 6}h={error[k].mean():.3f}" for k in range(ROLLOUT))
            log.info("update %d (%d steps) loss %.4f validation %s", update, steps, loss.item(), parts)
            if error.mean() < best_error:
                best, best_error = copy.deepcopy(mean_model), float(error.mean())
    log.info("%d updates; best validation error %.4f of the damped anomaly", update, best_error)
    return best.cpu()


def run(name: str, build: Callable[[Constants, float], nn.Module], history: int, default: Path) -> None:
    """Read the command line, train, print the skill on the test year, and export to `--out`/model.onnx."""
    parser = argparse.ArgumentParser(description=f"Train {name} and write model.onnx.")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder with era5_2003.nc ..")
    parser.add_argument("--out", type=Path, default=default, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of matrices")
    parser.add_argument("--one-step", type=float, default=0.5, help="share of the time without rollouts")
    parser.add_argument("--resume", type=Path, help="state.pt of an earlier run to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    a = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(a.threads)
    torch.set_float32_matmul_precision("high")
    gulf = load_gulf(a.data)
    s = Settings(a.minutes, a.batch, a.peak, a.dropout, a.decay, a.seed, a.device, a.one_step, a.resume)
    model = train(gulf, build, history, s).eval()
    a.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), a.out / "state.pt")
    field, judge = Field(gulf, history, "cpu"), Judge(gulf, "test", 8)
    table = skill_table(judge, forecasts(model, field, judge), name)
    (a.out / "skill.md").write_text(table, encoding="utf-8")
    log.info("%s", table)
    rows = torch.tensor([100, 5000, 9000])
    export_named(
        model,
        {"state": field.start(rows), "time": field.times[rows]},
        a.out / "model.onnx",
        outputs=["next"],
        properties={"license": LICENCE, "source": name},
    )
