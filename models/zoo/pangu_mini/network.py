"""pangu_mini: windowed attention with bias tables, post-norm residuals and a skip, in Pangu-Weather's manner.

    state [b, 3, 7, 12], time [b, 8]
      tokens  = convolution (kernel 1) of the standardised state and 6 constant maps, + affine map of time
      layer1  = 2 blocks on 7 x 12 places, width 64, windows 7 x 4     (bias stored expanded)
      down    = rows padded to 8, 2 x 2 places merged: 4 x 6 places, width 128
      layer2  = 4 blocks, windows 4 x 3                                (bias stored as a table, gathered)
      up      = back to 7 x 12 places, width 64
      layer4  = 2 blocks; concatenated with layer1's output
      next    = state + change x convolution (kernel 1) of the 128 channels

Every block: x + LN(attention(x)), then x + LN(mlp(x)); every second one has its windows shifted.
"""

from __future__ import annotations

import torch
from layers import Affine, Mlp, Norm, WindowAttention, Windows
from torch import Tensor, nn
from torch.nn import functional

GRID, COARSE, WIDTH, HEADS, TIME = (7, 12), (4, 6), 64, 4, 8


class Block(nn.Module):
    """One post-norm block."""

    def __init__(self, width: int, heads: int, windows: Windows, bias: str, dropout: float) -> None:
        super().__init__()
        self.attention = WindowAttention(width, heads, windows, bias, dropout)
        self.norm1, self.norm2 = Norm(width, 0.3), Norm(width, 0.3)
        self.mlp = Mlp(width, dropout)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [b, *grid, width] to the same shape."""
        x = x + functional.dropout(self.norm1(self.attention(x)), self.dropout, self.training)
        return x + functional.dropout(self.norm2(self.mlp(x)), self.dropout, self.training)


def _blocks(
    n: int, width: int, heads: int, grid: tuple[int, int], window: tuple[int, int], bias: str, dropout: float
) -> nn.Sequential:
    made = (Block(width, heads, Windows(grid, window, shifted=i % 2 == 1), bias, dropout) for i in range(n))
    return nn.Sequential(*made)


class PanguMini(nn.Module):
    """state, time -> the state 6 h later, in the units of the data.

    Parameters
    ----------
    mean, deviation, change : torch.Tensor
        Float32 [3]: of the states, and the deviation of their change over 6 h.
    maps : torch.Tensor
        Float32 [6, 7, 12], standardised constants of the region.
    dropout : float
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, change: Tensor, maps: Tensor, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("deviation", deviation), ("change", change)):
            self.register_buffer(name, value.reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("maps", maps.unsqueeze(0), persistent=False)
        self.embed = nn.Conv1d(3 + len(maps), WIDTH, 1)
        self.time = Affine(TIME, WIDTH)
        self.layer1 = _blocks(2, WIDTH, HEADS, GRID, (7, 4), "expanded", dropout)
        self.down_norm, self.down = Norm(4 * WIDTH), Affine(4 * WIDTH, 2 * WIDTH)
        self.layer2 = _blocks(4, 2 * WIDTH, 2 * HEADS, COARSE, (4, 3), "table", dropout)
        self.up, self.up_norm, self.mix = Affine(2 * WIDTH, 4 * WIDTH), Norm(WIDTH), Affine(WIDTH, WIDTH)
        self.layer4 = _blocks(2, WIDTH, HEADS, GRID, (7, 4), "expanded", dropout)
        self.recover = nn.Conv1d(2 * WIDTH, 3, 1)
        with torch.no_grad():
            self.recover.weight.mul_(0.1)

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        """Map float32 [b, 3, 7, 12] and [b, 8] to [b, 3, 7, 12]."""
        (rows, columns), (h, w) = GRID, COARSE
        x = (state - self.mean) / self.deviation
        maps = self.maps.expand(x.shape[0], -1, -1, -1)
        x = self.embed(torch.cat([x, maps], dim=1).flatten(2)).transpose(1, 2)
        x = (x + self.time(time).unsqueeze(1)).reshape(-1, rows, columns, WIDTH)
        skip = x = self.layer1(x)
        x = functional.pad(x, (0, 0, 0, 0, 0, 1)).reshape(-1, h, 2, w, 2, WIDTH)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, 4 * WIDTH)
        x = self.layer2(self.down(self.down_norm(x)))
        x = self.up(x).reshape(-1, h, w, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5)
        x = self.mix(self.up_norm(x.reshape(-1, 2 * h, columns, WIDTH)[:, :rows]))
        x = torch.cat([skip, self.layer4(x)], dim=-1)
        x = self.recover(x.reshape(-1, rows * columns, 2 * WIDTH).transpose(1, 2))
        return state + self.change * x.reshape(-1, 3, rows, columns)
