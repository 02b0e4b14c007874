"""Train timesfm_mini on the training rows of six public tables, and write model.onnx.

Usage: ``python models/zoo/timesfm_mini/train.py`` from the repository root, with the [export] extra.

A batch mixes the tables; a sample is 640 rows of one column (every first, second or fourth row), sometimes
negated. The loss is the mean absolute error of the 128 values after each patch, in units of the running
deviation but not below `FLOOR` deviations of the column, so that near-constant openings do not rule it. The
averaged weights with the lowest validation error over the 500-value rollout are kept. CPU, float32: about
ten minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import Table, load_tables, windows
from network import CONTEXT, OUTPUT, PATCH, TimesFmMini
from torch import Tensor

from tqs_models.lean import export_lean

log = logging.getLogger("timesfm_mini")

SHARE = {"ETTh1": 0.15, "ETTh2": 0.15, "ETTm1": 0.18, "ETTm2": 0.18, "exchange_rate": 0.1, "weather": 0.24}
"""Share of each table in a batch."""
SKIPS = {"ETTh": (1, 1, 1, 2), "ETTm": (1, 1, 1, 2, 4), "exch": (1,), "weat": (1, 1, 1, 2, 4)}
"""Row strides a sample is drawn with, by the first letters of the table's name."""
FLOOR = 0.3
FIRST = 3
"""Position of the first patch that is trained on: 128 values of context."""
HORIZON, STEPS = 500, 4


class Sampler:
    """Random training samples, float32 [batch, 640], in units of each column's training deviation."""

    def __init__(self, tables: list[Table], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = [t.name for t in tables]
        self.series = []
        for t in tables:
            train = t.values[slice(*t.split.train)]
            self.series.append(((train - train.mean(0)) / train.std(0)).astype(np.float32))
        self.share = np.array([SHARE[n] for n in self.names])

    def batch(self, size: int) -> Tensor:
        """Draw `size` samples."""
        length = CONTEXT + OUTPUT
        rows = np.empty((size, length), np.float32)
        for i, t in enumerate(self.rng.choice(len(self.series), size, p=self.share)):
            table = self.series[t]
            skip = int(self.rng.choice(SKIPS[self.names[t][:4]]))
            start = int(self.rng.integers(len(table) - (length - 1) * skip))
            column = int(self.rng.integers(table.shape[1]))
            sign = -1.0 if self.rng.random() < 0.25 else 1.0
            rows[i] = sign * table[start : start + length * skip : skip, column][:length]
        return torch.from_numpy(rows)


def loss_of(model: TimesFmMini, rows: Tensor) -> Tensor:
    """Mean absolute error over all trained positions of `rows` [b, 640]; the last position counts double."""
    forecast, sigma = model.heads(rows[:, :CONTEXT], last_only=False)
    truth = rows.unfold(1, OUTPUT, PATCH)[:, 1:]
    error = (forecast - truth).abs() / sigma.detach().clamp(min=FLOOR)
    return (error[:, FIRST:].mean() * (CONTEXT // PATCH - FIRST) + error[:, -1].mean()) / (
        CONTEXT // PATCH - FIRST + 1
    )


@torch.no_grad()
def rollout(model: TimesFmMini, context: Tensor) -> Tensor:
    """Roll out [b, 512] over `STEPS` calls, sliding the window; return [b, HORIZON]."""
    parts = []
    for _ in range(STEPS):
        parts.append(model(context))
        context = torch.cat([context[:, OUTPUT:], parts[-1]], dim=1)
    return torch.cat(parts, dim=1)[:, :HORIZON]


def validation_error(model: TimesFmMini, tables: list[Table]) -> tuple[float, dict[str, float]]:
    """Return the rollout's MAE over that of persistence, mean over tables and by table, on validation rows.

    The contexts may reach back into the training rows; the truths lie in the validation rows.
    """
    model.eval()
    ratio = {}
    for t in tables:
        first, stop = t.split.validation
        scale = t.values[slice(*t.split.train)].std(0).astype(np.float32)[None, :, None]
        context, truth = windows(t, (first - CONTEXT, stop), CONTEXT, HORIZON)
        made = rollout(model, torch.from_numpy(context.reshape(-1, CONTEXT))).numpy().reshape(truth.shape)
        persistence = np.abs((context[:, :, -1:] - truth) / scale).mean()
        ratio[t.name] = float(np.abs((made - truth) / scale).mean() / persistence)
    model.train()
    return float(np.mean(list(ratio.values()))), ratio


def train(
    tables: list[Table], *, steps: int, batch: int, peak: float, dropout: float, seed: int
) -> TimesFmMini:
    """Return the averaged model with the lowest validation error."""
    torch.manual_seed(seed)
    sampler = Sampler(tables, seed)
    model = TimesFmMini(dropout)
    mean_model = copy.deepcopy(model).eval()
    best, best_error = copy.deepcopy(mean_model), math.inf
    optimiser = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.95), weight_decay=0.1)
    begin = time.monotonic()
    for step in range(1, steps + 1):
        warm = min(1.0, step / 200)
        optimiser.param_groups[0]["lr"] = peak * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        loss = loss_of(model, sampler.batch(batch))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            for mean, now in zip(mean_model.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        if step % 250 == 0 or step == steps:
            error, ratio = validation_error(mean_model, tables)
            mean_model.eval()
            parts = " ".join(f"{n}={r:.3f}" for n, r in ratio.items())
            log.info(
                "step %d loss %.4f validation %.4f (%s) %.0f s",
                step,
                loss.item(),
                error,
                parts,
                time.monotonic() - begin,
            )
            if error < best_error:
                best, best_error = copy.deepcopy(mean_model), error
    log.info("best validation error %.4f of persistence", best_error)
    return best


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description="Train timesfm_mini and write model.onnx.")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("model.onnx"))
    parser.add_argument(
        "--state", type=Path, help="also keep the weights here, or export them with --export-only"
    )
    parser.add_argument("--export-only", action="store_true")
    a = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(a.threads)
    if a.export_only:
        model = TimesFmMini()
        model.load_state_dict(torch.load(a.state, weights_only=True))
    else:
        model = train(
            load_tables(), steps=a.steps, batch=a.batch, peak=a.peak, dropout=a.dropout, seed=a.seed
        )
        if a.state:
            torch.save(model.state_dict(), a.state)
    example = torch.randn(3, CONTEXT).cumsum(1)
    export_lean(model.eval(), example, a.output, input_name="context", output_name="forecast")


if __name__ == "__main__":
    main()
