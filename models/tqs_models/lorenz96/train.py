# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="misc, no-any-return"
"""Train the bundled Lorenz-96 model and write model.onnx, contexts.npz, eval.npz and rollout.toml.

    state [b, 40] -> standardised x [b, 40, 1]
      tokens  = convolution of 5 neighbours on the circle, 1 -> 64 channels
      body    = 4 x (y = LN(tokens) of 5 neighbours [b, 40, 320]; a, g = up(y); tokens + down(a * silu(g)))
      next    = state + scale * head(LN(tokens))

First phase: one step. Second phase: `UNROLL` steps, each prediction fed back. Loss: mean squared error in
units of the typical change over one step. The data are Runge-Kutta runs that share no start with the stored
contexts. Needs the [export] extra; run it as ``python -m tqs_models.lorenz96.train``: about ten minutes on one
core.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tqs_models.lean import export_lean
from tqs_models.lorenz96 import system

log = logging.getLogger("lorenz96")

WIDTH, HIDDEN, BLOCKS, NEIGHBOURS = 64, 96, 4, 5
MEAN, DEVIATION = 2.35, 3.64
"""Deviation of the climate, in the state's unit."""
CHANGE = 2.3
"""Deviation of the change over one step, in the state's unit."""
UNROLL = 4


class Affine(nn.Module):
    """``x @ weight + bias`` with `weight` [fan_in, fan_out]."""

    def __init__(self, fan_in: int, fan_out: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * fan_in**-0.5 * torch.randn(fan_in, fan_out))
        self.bias = nn.Parameter(0.01 * torch.randn(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [..., fan_in] to [..., fan_out]."""
        return x @ self.weight + self.bias


class Norm(nn.Module):
    """Layer normalisation over the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.01 * torch.randn(width))
        self.bias = nn.Parameter(0.01 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float32 [..., width]."""
        return functional.layer_norm(x, self.scale.shape, self.scale, self.bias)


class Block(nn.Module):
    """One gated residual block over `NEIGHBOURS` places on the circle."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm(WIDTH)
        self.up = Affine(NEIGHBOURS * WIDTH, 2 * HIDDEN)
        self.down = Affine(HIDDEN, WIDTH, gain=BLOCKS**-0.5)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Map float32 [b, 40, WIDTH] to the same shape; `places` int64 [40 * NEIGHBOURS]."""
        near = self.norm(x).index_select(1, places).reshape(-1, system.VARIABLES, NEIGHBOURS * WIDTH)
        value, gate = self.up(near).chunk(2, dim=2)
        return x + self.down(value * functional.silu(gate))


class Surrogate(nn.Module):
    """One step of the system: state float32 [b, 40] -> next float32 [b, 40]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(1, WIDTH, NEIGHBOURS)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = Norm(WIDTH)
        self.head = Affine(WIDTH, WIDTH)
        self.output = Affine(WIDTH, 1, gain=0.1)
        reach = NEIGHBOURS // 2
        ring = torch.arange(-reach, system.VARIABLES + reach) % system.VARIABLES
        self.register_buffer("ring", ring, persistent=False)
        near = ring.unfold(0, NEIGHBOURS, 1).reshape(-1)
        self.register_buffer("places", near.contiguous(), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """Return the state one step later."""
        x = ((state - MEAN) / DEVIATION).index_select(1, self.ring).unsqueeze(1)
        x = self.embed(x).transpose(1, 2)
        for block in self.blocks:
            x = block(x, self.places)
        x = self.output(functional.silu(self.head(self.norm(x))))
        return state + CHANGE * x.reshape(-1, system.VARIABLES)


def training_runs(members: int, steps: int, seed: int) -> Tensor:
    """Return float32 [members, steps + 1, 40]: Runge-Kutta runs, each from its own start."""
    start = system.climate(members, seed)
    runs = np.concatenate([start[:, None], system.trajectory(start, steps)], axis=1)
    return torch.from_numpy(runs.astype(np.float32))


def loss_of(model: Surrogate, window: Tensor) -> Tensor:
    """Return the mean squared error of the rollout over `window` [b, steps + 1, 40], in units of `CHANGE`."""
    x, losses = window[:, 0], []
    for t in range(1, window.shape[1]):
        x = model(x)
        losses.append(((x - window[:, t]) / CHANGE).square().mean())
    return torch.stack(losses).mean()


def train(one_step: int, unrolled: int, batch: int, peak: float, seed: int) -> Surrogate:
    """Return the averaged model after `one_step` + `unrolled` updates."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    runs = training_runs(512, 400, seed + 1)
    held = training_runs(64, UNROLL, seed + 2)
    model = Surrogate()
    mean_model = copy.deepcopy(model).eval()
    optimiser = torch.optim.Adam(model.parameters(), peak)
    begin = time.monotonic()
    for step in range(1, one_step + unrolled + 1):
        first = step <= one_step
        part = step / one_step if first else (step - one_step) / unrolled
        top = peak if first else 0.05 * peak
        cosine = 0.01 + 0.495 * (1 + math.cos(math.pi * part))
        optimiser.param_groups[0]["lr"] = top * min(1.0, step / 100) * cosine
        member = torch.from_numpy(rng.integers(runs.shape[0], size=batch))
        row = torch.from_numpy(rng.integers(runs.shape[1] - UNROLL, size=batch))
        length = 1 if first else UNROLL
        loss = loss_of(model, torch.stack([runs[member, row + t] for t in range(length + 1)], dim=1))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            for mean, now in zip(mean_model.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        if step % 250 == 0:
            with torch.no_grad():
                one = loss_of(mean_model, held[:, :2]).sqrt().item() * CHANGE / DEVIATION
                four = loss_of(mean_model, held).sqrt().item() * CHANGE / DEVIATION
            seconds = time.monotonic() - begin
            log.info("update %d held-out error of the deviation: %.5f, %.5f %.0f s", step, one, four, seconds)
    return mean_model


def write_contexts(folder: Path, steps: int) -> None:
    """Write contexts.npz (32 states) and eval.npz (64 states with their truth), each state from its own start."""
    scoring = system.climate(32, seed=1001)
    judged = system.climate(64, seed=2001)
    np.savez_compressed(folder / "contexts.npz", state=scoring.astype(np.float32))
    rounded = judged.astype(np.float32)
    truth = system.trajectory(rounded.astype(np.float64), steps).astype(np.float32)
    arrays: dict[str, Any] = {"state": rounded, "truth/next": truth}
    np.savez_compressed(folder / "eval.npz", **arrays)


def main() -> None:
    """Train, export, and write the contexts."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Train the bundled Lorenz-96 model.")
    parser.add_argument("--one-step", type=int, default=15000, help="updates of the first phase")
    parser.add_argument("--unrolled", type=int, default=1000, help="updates of the second phase")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=here, help="folder to write to")
    parser.add_argument("--contexts-only", action="store_true")
    a = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    write_contexts(a.output, steps=40)
    if a.contexts_only:
        return
    torch.set_num_threads(a.threads)
    model = train(a.one_step, a.unrolled, a.batch, a.peak, a.seed)
    example = torch.from_numpy(system.climate(4, seed=3001).astype(np.float32))
    export_lean(model, example, a.output / "model.onnx", input_name="state", output_name="next")


if __name__ == "__main__":
    main()
