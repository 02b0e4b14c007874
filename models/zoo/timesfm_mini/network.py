"""timesfm_mini: a decoder-only patch transformer in the manner of TimesFM, with its normalisation inside.

    context [b, 512] -> 16 patches of 32 -> running mean mu_i and deviation sigma_i of patches 0 .. i
      tokens  = tokenizer((patch_i - mu_i) / sigma_i) + position_i
      body    = 6 x (x + attention(LN(x)); x + mlp(LN(x))), causal
      head_i  = 128 values: last value of patch i + sigma_i * head(LN(token_i))

Training uses the heads of all positions (each sees only its own past); the exported graph keeps the last one.
Every weight is stored [in, out] and used as ``x @ weight``, so its name survives the ONNX export.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT, PATCH, OUTPUT = 512, 32, 128
WIDTH, LAYERS, HEADS, HIDDEN = 128, 6, 4, 512


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
    """Layer normalisation over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.01 * torch.randn(width))
        self.bias = nn.Parameter(0.01 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float32 [..., width]."""
        return functional.layer_norm(x, self.scale.shape, self.scale, self.bias)


class ResidualBlock(nn.Module):
    """Two affine maps with SiLU between them, and an affine skip: TimesFM's tokenizer and output head."""

    def __init__(self, fan_in: int, hidden: int, fan_out: int, gain: float = 1.0) -> None:
        super().__init__()
        self.hidden = Affine(fan_in, hidden)
        self.output = Affine(hidden, fan_out, gain)
        self.skip = Affine(fan_in, fan_out, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [..., fan_in] to [..., fan_out]."""
        return self.output(functional.silu(self.hidden(x))) + self.skip(x)


class Attention(nn.Module):
    """Causal multi-head attention with one fused projection for query, key and value."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.qkv = Affine(WIDTH, 3 * WIDTH)
        self.out = Affine(WIDTH, WIDTH, gain=(2 * LAYERS) ** -0.5)
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map float32 [b, positions, WIDTH] to the same shape; `mask` is added to the scores."""
        n = CONTEXT // PATCH
        q, k, v = self.qkv(x).reshape(-1, n, 3 * HEADS, WIDTH // HEADS).transpose(1, 2).chunk(3, dim=1)
        score = (q @ k.transpose(2, 3)) * (WIDTH // HEADS) ** -0.5 + mask
        share = functional.dropout(torch.softmax(score, dim=-1), self.dropout, self.training)
        return self.out((share @ v).transpose(1, 2).reshape(-1, n, WIDTH))


class Mlp(nn.Module):
    """WIDTH -> HIDDEN -> WIDTH with SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Affine(WIDTH, HIDDEN)
        self.down = Affine(HIDDEN, WIDTH, gain=(2 * LAYERS) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [..., WIDTH] to the same shape."""
        return self.down(functional.silu(self.up(x)))


class Layer(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attn_norm, self.attn = Norm(WIDTH), Attention(dropout)
        self.mlp_norm, self.mlp = Norm(WIDTH), Mlp()
        self.dropout = dropout

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map float32 [b, positions, WIDTH] to the same shape."""
        x = x + functional.dropout(self.attn(self.attn_norm(x), mask), self.dropout, self.training)
        return x + functional.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class TimesFmMini(nn.Module):
    """context [b, 512] -> forecast [b, 128], both in the units of the data."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        n = CONTEXT // PATCH
        self.tokenizer = ResidualBlock(PATCH, 2 * WIDTH, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(n, WIDTH))
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(LAYERS))
        self.norm = Norm(WIDTH)
        self.head = ResidualBlock(WIDTH, 2 * WIDTH, OUTPUT, gain=0.1)
        self.register_buffer("counts", torch.arange(1.0, n + 1), persistent=False)
        self.register_buffer("causal_mask", torch.triu(torch.full((n, n), -1e9), 1), persistent=False)

    def heads(self, context: Tensor, *, last_only: bool) -> tuple[Tensor, Tensor]:
        """Return the forecasts [b, positions, 128] and the deviation [b, positions, 1] each was made with.

        The mean of the whole context is taken off first. It cancels in exact arithmetic; in float32 it keeps
        the running variance accurate for series that lie far from zero. The small share of the whole
        context's variance keeps a constant opening from being divided by zero. For a constant context that
        share has a lower bound: a bound, because the exporter drops the addition of so small a number.
        """
        centre = context.mean(dim=1, keepdim=True)
        patches = (context - centre).reshape(-1, CONTEXT // PATCH, PATCH)
        square = (patches * patches).mean(dim=2)
        mean = torch.cumsum(patches.mean(dim=2), dim=1) / self.counts
        variance = torch.cumsum(square, dim=1) / self.counts - mean * mean
        floor = (1e-6 * square.mean(dim=1, keepdim=True)).clamp(min=1e-12)
        sigma = torch.sqrt(torch.relu(variance) + floor).unsqueeze(2)
        x = self.tokenizer((patches - mean.unsqueeze(2)) / sigma) + self.position
        for layer in self.layers:
            x = layer(x, self.causal_mask)
        last = patches[:, :, -1:] + centre.unsqueeze(2)
        if last_only:
            x, sigma, last = x[:, -1:], sigma[:, -1:], last[:, -1:]
        return last + sigma * self.head(self.norm(x)), sigma

    def forward(self, context: Tensor) -> Tensor:
        """Return the 128 values after `context`, float32 [b, 128]."""
        return self.heads(context, last_only=True)[0].reshape(-1, OUTPUT)
