"""Train a recurrent forecaster of the zoo on the training rows of one public table, and write model.onnx.

    loss: mean absolute error of free-running predictions, in units of each column's training deviation
    a sample starts at any training row; the window is followed by `ROWS` predictions, each fed back
    kept: the averaged weights with the lowest error of the rollout that rollout.toml describes, on validation rows

CPU, float32, seeded; some minutes on one core. This module must never import onnxruntime.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

sys.path.insert(1, str(Path(__file__).resolve().parent / "timesfm_mini"))

from data import Table, load_tables
from recurrent_networks import GruWeather, LstmEtt, Seq2SeqEtt

log = logging.getLogger("recurrent")
Network = LstmEtt | GruWeather | Seq2SeqEtt
ROWS = 24
"""Predictions of a training sample."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on what."""

    name: str
    table: str
    window: int
    lead: int
    """Rows of the judged rollout."""
    build: Callable[[Tensor, Tensor], Network]
    write: Callable[[Any, Path], onnx.ModelProto]
    updates: int = 2400
    noise: float = 0.02
    """Deviation of the noise on the inputs, in deviations of the columns."""
    decay: float = 0.01


def table_of(name: str) -> Table:
    """Return one of the public tables."""
    return next(t for t in load_tables() if t.name == name)


def windows(values: Tensor, starts: np.ndarray, length: int) -> Tensor:
    """Cut float32 [starts, length, columns]."""
    return values[torch.from_numpy(starts)[:, None] + torch.arange(length)[None, :]]


@torch.no_grad()
def validation_error(model: Network, task: Task, values: Tensor, rows: tuple[int, int]) -> float:
    """Return the error of free-running predictions over that of persistence, on standardised validation rows."""
    length = task.window + task.lead
    cut = windows(values, np.arange(rows[0], rows[1] - length, 96), length)
    window, truth = cut[:, : task.window], cut[:, task.window :]
    made = model.walk(window, task.lead)
    return float((made - truth).abs().mean() / (window[:, -1:] - truth).abs().mean())


def train(task: Task, updates: int, peak: float, seed: int) -> Network:
    """Return the averaged model with the lowest validation error."""
    torch.manual_seed(seed)
    table = table_of(task.table)
    raw = torch.from_numpy(table.values.astype(np.float32))
    first, last = table.split.train
    mean, deviation = raw[first:last].mean(0), raw[first:last].std(0, correction=0)
    values = (raw - mean) / deviation
    model = task.build(mean, deviation)
    average = copy.deepcopy(model).eval()
    best, best_error = copy.deepcopy(average), math.inf
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), peak, weight_decay=task.decay)
    begin = time.monotonic()
    for update in range(1, updates + 1):
        shape = min(1.0, update / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * update / updates)))
        optimiser.param_groups[0]["lr"] = peak * shape
        cut = windows(values, rng.integers(first, last - task.window - ROWS, BATCH), task.window + ROWS)
        window = cut[:, : task.window] + task.noise * torch.randn_like(cut[:, : task.window])
        loss = (model.walk(window, ROWS) - cut[:, task.window :]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.99, update / (update + 10))
        with torch.no_grad():
            for smooth, now in zip(average.parameters(), model.parameters(), strict=True):
                smooth.lerp_(now, 1 - keep)
        if update % 100 == 0 or update == updates:
            error = validation_error(average, task, values, table.split.validation)
            log.info(
                "%s: update %d loss %.4f validation %.4f of persistence, %.0f s",
                *(task.name, update, loss.item(), error, time.monotonic() - begin),
            )
            if error < best_error:
                best, best_error = copy.deepcopy(average), error
    log.info("%s: best validation error %.4f of persistence", task.name, best_error)
    return best


def run(task: Task, folder: Path) -> None:
    """Train and export, by command line."""
    parser = argparse.ArgumentParser(description=f"Train {task.name} and write model.onnx.")
    parser.add_argument("--updates", type=int, default=task.updates)
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=folder / "model.onnx")
    parser.add_argument("--state", type=Path, help="also keep the weights here")
    parser.add_argument("--export-only", action="store_true", help="export the weights in --state")
    a = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(a.threads)
    if a.export_only:
        columns = table_of(task.table).values.shape[1]
        model = task.build(torch.zeros(columns), torch.ones(columns))
        model.load_state_dict(torch.load(a.state, weights_only=True))
    else:
        model = train(task, a.updates, a.peak, a.seed)
        if a.state:
            torch.save(model.state_dict(), a.state)
    onnx.save(task.write(model.eval(), a.output), a.output)
