"""Building blocks of the gulf models: affine maps, norms, and attention inside windows.

Every weight is stored as it is used (``x @ weight`` with `weight` [in, out]), so that its name survives the
ONNX export. No tensor starts out constant: equal constants would be merged by the exporter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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
    """Layer normalisation over the last axis; `scale` starts near `start`."""

    def __init__(self, width: int, start: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(start * (1 + 0.01 * torch.randn(width)))
        self.bias = nn.Parameter(0.01 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float32 [..., width]."""
        return functional.layer_norm(x, self.scale.shape, self.scale, self.bias)


class Mlp(nn.Module):
    """width -> 4 width -> width with GELU."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = Affine(width, 4 * width), Affine(4 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [..., width] to the same shape."""
        x = functional.dropout(functional.gelu(self.up(x)), self.dropout, self.training)
        return self.down(x)


class Windows:
    """Cuts float32 [b, *grid, width] into windows, shifted or not, and puts them together again.

    A shifted grid is rolled by half a window along each axis that holds more than one; `mask` then keeps
    places apart that were not neighbours, as the region has borders on all sides.
    """

    def __init__(self, grid: tuple[int, ...], window: tuple[int, ...], *, shifted: bool) -> None:
        if any(g % w for g, w in zip(grid, window, strict=True)):
            raise ValueError(f"windows {window} do not tile the grid {grid}")
        self.grid, self.window = grid, window
        self.counts = tuple(g // w for g, w in zip(grid, window, strict=True))
        self.shift = tuple(
            w // 2 if shifted and c > 1 else 0 for w, c in zip(window, self.counts, strict=True)
        )
        n = len(grid)
        self.axes = tuple(range(1, n + 1))
        self._order = (0, *(1 + 2 * i for i in range(n)), *(2 + 2 * i for i in range(n)), 2 * n + 1)
        self._inverse = tuple(sorted(range(len(self._order)), key=self._order.__getitem__))
        self.number = torch.tensor(self.counts).prod().item()
        self.size = torch.tensor(window).prod().item()

    def cut(self, x: Tensor) -> Tensor:
        """Return [b, windows, places, width]."""
        if any(self.shift):
            x = torch.roll(x, tuple(-s for s in self.shift), self.axes)
        sides = [n for pair in zip(self.counts, self.window, strict=True) for n in pair]
        width = x.shape[-1]
        return x.reshape(-1, *sides, width).permute(self._order).reshape(-1, self.number, self.size, width)

    def join(self, x: Tensor) -> Tensor:
        """Undo `cut`."""
        width = x.shape[-1]
        x = x.reshape(-1, *self.counts, *self.window, width).permute(self._inverse)
        x = x.reshape(-1, *self.grid, width)
        return torch.roll(x, self.shift, self.axes) if any(self.shift) else x

    def mask(self) -> Tensor | None:
        """Return float32 [1, windows, 1, places, places]: -100 between strangers; None where not shifted."""
        if not any(self.shift):
            return None
        region = torch.zeros(1, *self.grid, 1)
        for axis, (size, shift) in enumerate(zip(self.grid, self.shift, strict=True), start=1):
            far = torch.zeros(size)
            far[:shift] = 1.0  # these places are rolled to the far side
            shape = [1] * (len(self.grid) + 2)
            shape[axis] = size
            region = region * 2 + far.reshape(shape)
        label = self.cut(region)[0, :, :, 0]
        apart = label[:, :, None] != label[:, None, :]
        return torch.where(apart, -100.0, 0.0)[None, :, None]


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a bias per window and pair of places, or none.

    `bias`: "expanded" stores [1, windows, heads, places, places], which Add reads as it is; "table" stores
    [offsets, windows, heads], gathered by pair; "none" has no bias.
    """

    def __init__(self, width: int, heads: int, windows: Windows, bias: str, dropout: float) -> None:
        super().__init__()
        self.heads, self.windows, self.dropout, self.bias_form = heads, windows, dropout, bias
        self.qkv, self.out = Affine(width, 3 * width), Affine(width, width)
        n = windows.size
        if bias == "expanded":
            self.bias = nn.Parameter(0.02 * torch.randn(1, windows.number, heads, n, n))
        elif bias == "table":
            index, offsets = _pairs(windows.window)
            self.table = nn.Parameter(0.02 * torch.randn(offsets, windows.number, heads))
            self.register_buffer("pairs", index, persistent=False)
        mask = windows.mask()
        self.masked = mask is not None
        if mask is not None:
            self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [b, *grid, width] to the same shape."""
        w, size = self.windows, self.windows.size
        width = x.shape[-1]
        depth = width // self.heads
        x = self.qkv(w.cut(x)).reshape(-1, w.number, size, 3 * self.heads, depth).transpose(2, 3)
        q, k, v = x.chunk(3, dim=2)
        score = (q * depth**-0.5) @ k.transpose(3, 4)
        if self.bias_form == "expanded":
            score = score + self.bias
        elif self.bias_form == "table":
            bias = self.table.index_select(0, self.pairs).reshape(size, size, w.number, self.heads)
            score = score + bias.permute(2, 3, 0, 1).unsqueeze(0)
        if self.masked:
            score = score + self.mask
        share = functional.dropout(torch.softmax(score, dim=-1), self.dropout, self.training)
        x = (share @ v).transpose(2, 3).reshape(-1, w.number, size, width)
        return w.join(self.out(x))


def _pairs(window: tuple[int, ...]) -> tuple[Tensor, int]:
    """Return, for each pair of places, its row in a table, int64 [places ** 2], and the number of rows.

    As in Pangu-Weather, a pair is told apart by both places along all axes but the last (absolute position),
    and by their distance along the last.
    """
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in window), indexing="ij")).flatten(1)
    index = torch.zeros(places.shape[1], places.shape[1], dtype=torch.int64)
    rows = 1
    for axis, n in enumerate(window):
        one, other = places[axis][:, None], places[axis][None, :]
        last = axis == len(window) - 1
        index = index * (2 * n - 1 if last else n * n) + (one - other + n - 1 if last else one * n + other)
        rows *= 2 * n - 1 if last else n * n
    return index.flatten(), rows
