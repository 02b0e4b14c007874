"""The three small recurrent forecasters of the zoo, in PyTorch, each with its scaler inside.

    LstmEtt      nn.LSTM of two layers, Linear: the next row of a table                 as written for PyTorch
    GruWeather   two GRU layers with reset_after, Dense: the next row of a table        as written for Keras
    Seq2SeqEtt   an LSTM encoder, an LSTM cell unrolled over 24 rows                    a Scan in the file

All work on standardised rows x and predict a change: y = x_last + head. Seq2SeqEtt reads its window relative to the
last row, because the level of that table moves over the year. `walk` feeds every prediction back with the state carried
on, as training needs it; `forward` reads a window from zero states, as the file does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Scaled(nn.Module):
    """Standardises rows [batch, time, columns] and undoes it."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def standard(self, rows: Tensor) -> Tensor:
        """Return rows in units of each column's deviation."""
        return (rows - self.mean) / self.deviation

    def raw(self, rows: Tensor) -> Tensor:
        """Return rows in the units of the table."""
        return rows * self.deviation + self.mean


class LstmEtt(_Scaled):
    """Window [batch, 96, 7] → next row [batch, 1, 7]."""

    def __init__(self, mean: Tensor, deviation: Tensor, width: int = 64) -> None:
        super().__init__(mean, deviation)
        self.lstm = nn.LSTM(len(mean), width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, len(mean))

    def walk(self, window: Tensor, steps: int) -> Tensor:
        """Return the standardised predictions [batch, steps, columns] after a standardised window."""
        out, state = self.lstm(window)
        row, made = window[:, -1:], []
        for step in range(steps):
            row = row + self.head(out[:, -1:])
            made.append(row)
            if step + 1 < steps:
                out, state = self.lstm(row, state)
        return torch.cat(made, 1)

    def forward(self, window: Tensor) -> Tensor:
        """Return the rows after a window, in the units of the table."""
        return self.raw(self.walk(self.standard(window), 1))


class GruWeather(_Scaled):
    """Window [batch, 72, 21] → next row [batch, 1, 21]."""

    def __init__(self, mean: Tensor, deviation: Tensor, widths: tuple[int, int] = (64, 48)) -> None:
        super().__init__(mean, deviation)
        self.first = nn.GRU(len(mean), widths[0], batch_first=True)
        self.second = nn.GRU(widths[0], widths[1], batch_first=True)
        self.head = nn.Linear(widths[1], len(mean))

    def walk(self, window: Tensor, steps: int) -> Tensor:
        """Return the standardised predictions [batch, steps, columns] after a standardised window."""
        out, one = self.first(window)
        out, two = self.second(out)
        row, made = window[:, -1:], []
        for step in range(steps):
            row = row + self.head(out[:, -1:])
            made.append(row)
            if step + 1 < steps:
                out, one = self.first(row, one)
                out, two = self.second(out, two)
        return torch.cat(made, 1)

    def forward(self, window: Tensor) -> Tensor:
        """Return the rows after a window, in the units of the table."""
        return self.raw(self.walk(self.standard(window), 1))


class Seq2SeqEtt(_Scaled):
    """Window [batch, 96, 7] → the next 24 rows [batch, 24, 7]."""

    STEPS = 24

    def __init__(self, mean: Tensor, deviation: Tensor, width: int = 72) -> None:
        super().__init__(mean, deviation)
        self.encoder = nn.LSTM(len(mean), width, batch_first=True)
        self.decoder = nn.LSTMCell(len(mean), width)
        self.head = nn.Linear(width, len(mean))

    def walk(self, window: Tensor, steps: int) -> Tensor:
        """Return the standardised predictions [batch, steps, columns] after a standardised window."""
        last = window[:, -1]
        _, (h, c) = self.encoder(window - last[:, None])
        h, c, change, made = h[0], c[0], torch.zeros_like(last), []
        for _ in range(steps):
            h, c = self.decoder(change, (h, c))
            change = change + self.head(h)
            made.append(last + change)
        return torch.stack(made, 1)

    def forward(self, window: Tensor) -> Tensor:
        """Return the rows after a window, in the units of the table."""
        return self.raw(self.walk(self.standard(window), self.STEPS))
