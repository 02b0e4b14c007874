"""aurora_mini: Perceiver encoder over variables, a windowed body with modulated norms, a head per variable.

    state [b, 2, 3, 7, 12] (6 h ago, now), time [b, 8]
      per variable: 2 x 2 patches of both times (rows padded to 8) -> tokens [b, 24 places, 3, 48]
                    + variable and place embeddings
      encoder = 2 latents a place attend to its 3 variables             -> [b, 2, 4, 6, 48]
                + affine map of time + affine map of the (constant) lead-time encoding
      body    = 6 blocks, windows 2 x 4 x 3, every second shifted; norms are scaled and shifted by an affine map
                of the lead-time encoding, which is a constant: these weights never meet a value that varies
      decoder = a query a variable attends to the 2 latents; a head a variable -> 2 x 2 patch
      next    = now + change x head

Attention with separate keys has a key bias: softmax removes it, so that it moves nothing but rounding.
"""

from __future__ import annotations

import math

import torch
from layers import Affine, Mlp, Norm, WindowAttention, Windows
from torch import Tensor, nn
from torch.nn import functional

GRID, PLACES, WIDTH, HEADS, LATENTS, BLOCKS, TIME = (7, 12), (4, 6), 48, 4, 2, 6, 8
VARIABLES = ("u10", "v10", "t2m")
LEAD_HOURS = 6.0


def lead_encoding() -> Tensor:
    """Return float32 [1, WIDTH]: sines and cosines of the lead time over periods of 1 h to one year."""
    period = torch.logspace(0.0, math.log10(24 * 365.25), WIDTH // 2, dtype=torch.float64)
    angle = 2 * math.pi * LEAD_HOURS / period
    return torch.cat([angle.sin(), angle.cos()]).float().unsqueeze(0)


class CrossAttention(nn.Module):
    """Queries attend to keys, place by place: float32 [b, places, q, WIDTH] and [b, places, k, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (Affine(WIDTH, WIDTH) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return float32 [b, places, q, WIDTH]."""
        n, q, k, depth = math.prod(PLACES), queries.shape[2], keys.shape[2], WIDTH // HEADS
        a = self.query(queries).reshape(-1, n, q, HEADS, depth).transpose(2, 3)
        b = self.key(keys).reshape(-1, n, k, HEADS, depth).transpose(2, 3)
        c = self.value(keys).reshape(-1, n, k, HEADS, depth).transpose(2, 3)
        share = torch.softmax((a * depth**-0.5) @ b.transpose(3, 4), dim=-1)
        return self.out((share @ c).transpose(2, 3).reshape(-1, n, q, WIDTH))


class Modulated(nn.Module):
    """Layer normalisation whose scale and shift are an affine map of the lead-time encoding."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = Affine(WIDTH, 2 * WIDTH, 0.1)

    def forward(self, x: Tensor, lead: Tensor) -> Tensor:
        """Normalise float32 [b, 2, 4, 6, WIDTH]; `lead` [1, WIDTH]."""
        shift, scale = self.modulation(functional.silu(lead)).chunk(2, dim=1)
        return functional.layer_norm(x, (WIDTH,)) * (scale + 1) + shift


class Block(nn.Module):
    """One block in Swin-v2's manner: the norms come behind attention and mlp."""

    def __init__(self, *, shifted: bool, dropout: float) -> None:
        super().__init__()
        windows = Windows((LATENTS, *PLACES), (LATENTS, 4, 3), shifted=shifted)
        self.attention = WindowAttention(WIDTH, HEADS, windows, "none", dropout)
        self.mlp = Mlp(WIDTH, dropout)
        self.norm1, self.norm2 = Modulated(), Modulated()
        self.dropout = dropout

    def forward(self, x: Tensor, lead: Tensor) -> Tensor:
        """Map float32 [b, 2, 4, 6, WIDTH] to the same shape."""
        x = x + functional.dropout(self.norm1(self.attention(x), lead), self.dropout, self.training)
        return x + functional.dropout(self.norm2(self.mlp(x), lead), self.dropout, self.training)


class AuroraMini(nn.Module):
    """state, time -> the state 6 h later, in the units of the data.

    Parameters
    ----------
    mean, deviation, change : torch.Tensor
        Float32 [3]: of the states, and the deviation of their change over 6 h.
    dropout : float
    """

    def __init__(self, mean: Tensor, deviation: Tensor, change: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("deviation", deviation), ("change", change)):
            self.register_buffer(name, value.reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("lead", lead_encoding(), persistent=False)
        n = math.prod(PLACES)
        self.embed = nn.ModuleDict({v: nn.Conv2d(2, WIDTH, 2, 2) for v in VARIABLES})
        self.variable = nn.Parameter(0.1 * torch.randn(3, WIDTH))
        self.place = nn.Parameter(0.1 * torch.randn(n, 1, WIDTH))
        self.latents = nn.Parameter(torch.randn(1, 1, LATENTS, WIDTH))
        self.encoder, self.encoder_mlp = CrossAttention(), Mlp(WIDTH, dropout)
        self.encoder_norm1, self.encoder_norm2 = Norm(WIDTH), Norm(WIDTH)
        self.time, self.lead_embed = Affine(TIME, WIDTH), Affine(WIDTH, WIDTH)
        self.lead_mlp = nn.Sequential(Affine(WIDTH, WIDTH), nn.SiLU(), Affine(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block(shifted=i % 2 == 1, dropout=dropout) for i in range(BLOCKS))
        self.query = nn.Parameter(torch.randn(1, 1, 3, WIDTH))
        self.decoder, self.decoder_mlp = CrossAttention(), Mlp(WIDTH, dropout)
        self.decoder_norm1, self.decoder_norm2 = Norm(WIDTH), Norm(WIDTH)
        self.heads = nn.ModuleDict({v: Affine(WIDTH, 4, 0.1) for v in VARIABLES})

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        """Map float32 [b, 2, 3, 7, 12] and [b, 8] to [b, 3, 7, 12]."""
        (rows, columns), (h, w) = GRID, PLACES
        n = h * w
        x = functional.pad((state - self.mean) / self.deviation, (0, 0, 0, 1))
        tokens = [self.embed[v](x[:, :, i]).flatten(2).transpose(1, 2) for i, v in enumerate(VARIABLES)]
        tokens_by_place = torch.stack(tokens, dim=2) + self.variable + self.place
        latents = self.latents.expand(x.shape[0], n, -1, -1)
        x = latents + self.encoder_norm1(self.encoder(latents, tokens_by_place))
        x = x + self.encoder_norm2(self.encoder_mlp(x))
        x = x + self.place + (self.time(time) + self.lead_embed(self.lead)).unsqueeze(1).unsqueeze(1)
        x = x.transpose(1, 2).reshape(-1, LATENTS, h, w, WIDTH)
        lead = self.lead_mlp(self.lead)
        for block in self.blocks:
            x = block(x, lead)
        x = x.reshape(-1, LATENTS, n, WIDTH).transpose(1, 2)
        queries = self.query.expand(x.shape[0], n, -1, -1)
        y = queries + self.decoder_norm1(self.decoder(queries, x))
        y = y + self.decoder_norm2(self.decoder_mlp(y))
        patches = torch.stack([self.heads[v](y[:, :, i]) for i, v in enumerate(VARIABLES)], dim=1)
        patches = patches.reshape(-1, 3, h, w, 2, 2).permute(0, 1, 2, 4, 3, 5)
        change = patches.reshape(-1, 3, 2 * h, columns)[:, :, :rows]
        return state[:, 1] + self.change * change
