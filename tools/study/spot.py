"""Trains three small forecasting models in a minute each, as a new user would, and exports them to ONNX.

A day and a half of the seven columns of ETTh2, standardised, goes in; the next day comes out, and is fed back. Trained
on the training rows, 1,200 steps, fixed seed. Needs PyTorch and onnxscript (`pip install 'tqs-onnx[export]'`)::

    python -m tools.study.spot --out FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tools.study.zoo import TABLES, data_root
from tqs_onnx.rollout.contexts.table import read_table

PAST, AHEAD, TRAIN = 36, 24, 8640
STEPS, BATCH = 1200, 64
NAMES = ("spot_mlp", "spot_conv", "spot_attention")
TABLE = "ETTh2"
ROLLOUT = f"""version = 1
[rollout]
steps = 4
batch_axis = 0
[[feedback]]
output = "ahead"
input = "past"
mode = "shift"
axis = 1
[trajectory]
outputs = ["ahead"]
time_axis = 1
[windows]
input = "past"
layout = "table"
standardise = true
context = {PAST}
horizon = {4 * AHEAD}
stride = 168
train = [0, {TRAIN}]
validation = [{TRAIN}, 11520]
test = [11520, 14400]
"""


def network(name: str, torch: Any, width: int) -> Any:  # noqa: ANN401 - PyTorch is no dependency
    """Return a network from [batch, 36, width] to [batch, 24, width]; it adds to the last row of its input."""
    nn = torch.nn

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Flatten(), nn.Linear(PAST * width, 512), nn.GELU()),
                *(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, AHEAD * width)),
            )

        def forward(self, past: Any) -> Any:  # noqa: ANN401
            return past[:, -1:] + self.body(past).reshape(-1, AHEAD, width)

    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv1d(width, 128, 3, padding=1)
            self.layers = nn.ModuleList(nn.Conv1d(128, 128, 3, padding=d, dilation=d) for d in (1, 2, 4, 8))
            self.leave = nn.Conv1d(128, width, 1)

        def forward(self, past: Any) -> Any:  # noqa: ANN401
            h = self.enter(past.transpose(1, 2))
            for layer in self.layers:
                h = h + torch.relu(layer(h))
            return past[:, -1:] + self.leave(h).transpose(1, 2)[:, -AHEAD:]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(width, 96)
            self.place = nn.Parameter(0.02 * torch.randn(PAST, 96))
            layer = nn.TransformerEncoderLayer(96, 4, 384, 0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.leave = nn.Linear(96, width)

        def forward(self, past: Any) -> Any:  # noqa: ANN401
            h = self.layers(self.enter(past) + self.place)
            return past[:, -1:] + self.leave(h)[:, -AHEAD:]

    return {"spot_mlp": Mlp, "spot_conv": Conv, "spot_attention": Attention}[name]()


def trained(name: str, values: np.ndarray, torch: Any) -> Any:  # noqa: ANN401
    """Return a network trained to forecast the next day of standardised rows [row, column]."""
    torch.manual_seed(0)
    model = network(name, torch, values.shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, STEPS)
    rows = torch.tensor(values, dtype=torch.float32)
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        starts = draw.integers(0, TRAIN - PAST - AHEAD, BATCH)
        past = torch.stack([rows[s : s + PAST] for s in starts])
        ahead = torch.stack([rows[s + PAST : s + PAST + AHEAD] for s in starts])
        loss = (model(past) - ahead).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def main() -> None:
    """Train and export what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    folder: Path = parser.parse_args().out
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rollout.toml").write_text(ROLLOUT, encoding="utf-8")
    values = read_table(data_root() / TABLES[TABLE][0]).values
    values = (values - values[:TRAIN].mean(0)) / values[:TRAIN].std(0)
    for name in NAMES:
        path = folder / f"{name}.onnx"
        if not path.exists():
            model = trained(name, values, torch)
            example = torch.zeros(2, PAST, values.shape[1])
            batch = torch.export.Dim("batch", min=1, max=4096)
            torch.onnx.export(
                *(model, (example,), path),
                input_names=["past"],
                output_names=["ahead"],
                dynamic_shapes={"past": {0: batch}},
                dynamo=True,
                external_data=False,
            )
            print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
