# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="misc, no-any-return, import-not-found, import-untyped, no-untyped-call"
"""TimesFM-2.5 as one forecast graph on plain tensors, including its running normalisation.

    patch i (32 values): mean mu_i and deviation sigma_i of all unmasked values of patches 0 .. i (population)
      z_i      = (x_i - mu_i) / sigma_i, 0 where masked; sigma < 1e-6 counts as 1
      network(z, mask), no cache; the heads of the last patch times sigma_n, plus mu_n

The between-patch variance is summed over a lower triangle, so that the number of patches stays dynamic.
"""

from __future__ import annotations

import torch
from timesfm.timesfm_2p5.timesfm_2p5_torch import TimesFM_2p5_200M_torch_module
from torch import Tensor, nn

from tqs_models.timesfm import CHANNELS, HEAD, OUTPUT, PATCH


def random_network(seed: int, layers: int | None = None) -> nn.Module:
    """Return the package's network with random weights, none of them dead.

    The package initializes the scales of its norms to 0, so that every layer returns its input; here they are drawn
    around 1. `layers` keeps only the first ones.
    """
    torch.manual_seed(seed)
    network = TimesFM_2p5_200M_torch_module().eval()
    if layers is not None:
        network.stacked_xf = network.stacked_xf[:layers]
        network.x = layers
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".scale"):
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
            elif name.endswith("per_dim_scale"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return network


class Forecast(nn.Module):
    """context float32 [b, 32 n], mask bool [b, 32 n] -> forecast [b, 128, 10], quantile head [b, 1024, 10]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Forecast the values after the context, in its own units."""
        batch = context.shape[0]
        x, masked = context.reshape(batch, -1, PATCH), mask.reshape(batch, -1, PATCH)
        kept = (~masked).to(x.dtype)
        count = kept.sum(-1)
        centre = (x * kept).sum(-1) / torch.where(count == 0, 1.0, count)
        square = (((x - centre[..., None]) ** 2) * kept).sum(-1)
        total = torch.cumsum(count, 1)
        total = torch.where(total == 0, 1.0, total)
        mean = torch.cumsum(centre * count, 1) / total
        place = torch.arange(x.shape[1])
        seen = (place[:, None] >= place[None, :]).to(x.dtype)
        between = ((centre[:, None, :] - mean[:, :, None]) ** 2 * count[:, None, :] * seen).sum(-1)
        deviation = torch.sqrt((torch.cumsum(square, 1) + between) / total)
        divisor = torch.where(deviation < 1e-6, 1.0, deviation)
        z = torch.where(masked, 0.0, (x - mean[..., None]) / divisor[..., None])
        (_, _, point, spread), _ = self.network(z, masked, None)
        point = point[:, -1] * deviation[:, -1:] + mean[:, -1:]
        spread = spread[:, -1] * deviation[:, -1:] + mean[:, -1:]
        return point.reshape(batch, OUTPUT, CHANNELS), spread.reshape(batch, HEAD, CHANNELS)
