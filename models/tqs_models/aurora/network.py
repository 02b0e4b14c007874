# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false
# mypy: disable-error-code="misc, no-any-return, import-not-found, import-untyped, no-untyped-call"
"""One step of Aurora on plain tensors, physical units in and out, ready for export.

The package's own `forward` builds its `Batch` and reads values of tensors on the way, which no exporter can trace.
`Step` calls encoder, backbone and decoder directly. While it runs, it replaces five functions of the package: the
check of the coordinates, and the encodings of position, level, lead time and absolute time, which become constants
(and an input). If the level encoding stayed in the graph, the exporter would compute it with less precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from tqs_models.aurora import ATMOS, STATIC, SURFACE
from tqs_models.aurora.timm_names import stand_in_for_timm

stand_in_for_timm()

from aurora import AuroraSmallPretrained, Batch, Metadata  # noqa: E402
from aurora.model import decoder, encoder, fourier, swin3d  # noqa: E402
from aurora.model.posencoding import pos_scale_enc  # noqa: E402
from aurora.normalisation import locations, scales  # noqa: E402

START = datetime(2020, 6, 1, 12, tzinfo=UTC)


def random_network(seed: int, **sizes: Any) -> nn.Module:  # noqa: ANN401  (sizes are the package's own arguments)
    """Return the package's network with random weights that are neither dead nor equal.

    The package initializes the modulations of its norms to 0, which disables every block, and all biases and
    norms to one value, so that an exporter would merge them; both are drawn at random here.
    """
    torch.manual_seed(seed)
    network = AuroraSmallPretrained(**sizes).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "ln_modulation.1" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
            elif parameter.dim() == 1 and parameter.numel() > 1 and float(parameter.std()) == 0:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return network


class Step(nn.Module):
    """See the package's docstring for inputs and outputs.

    Parameters
    ----------
    network : torch.nn.Module
    latitude, longitude : torch.Tensor
        Coordinates of the grid; the number of latitudes is a multiple of the patch size.
    levels : sequence of int
        Pressure levels in hPa.
    """

    def __init__(
        self, network: nn.Module, latitude: Tensor, longitude: Tensor, levels: Sequence[int]
    ) -> None:
        super().__init__()
        self.network, self.levels = network, tuple(levels)
        size, width = network.patch_size, network.encoder.embed_dim
        position, scale = pos_scale_enc(
            width,
            latitude,
            longitude,
            size,
            pos_expansion=fourier.pos_expansion,
            scale_expansion=fourier.scale_expansion,
        )
        pressure = torch.tensor(self.levels)
        lead = torch.tensor([network.timestep.total_seconds() / 3600])
        self._keep("lead", lead)
        self._keep("latitude", latitude)
        self._keep("longitude", longitude)
        self._keep("position", position)
        self._keep("scale", scale)
        self._keep("levels_in", fourier.levels_expansion(pressure, width))
        self._keep("levels_out", fourier.levels_expansion(pressure, network.decoder.embed_dim))
        self._keep("lead_encoding", fourier.lead_time_expansion(lead, width))
        upper = [f"{v}_{level}" for v in ATMOS for level in levels]
        for kind, table in (("mean", locations), ("deviation", scales)):
            for part, names, shape in (
                ("surf", list(SURFACE), (-1, 1, 1)),
                ("static", list(STATIC), (-1, 1, 1)),
                ("atmos", upper, (len(ATMOS), -1, 1, 1)),
            ):
                self._keep(f"{part}_{kind}", torch.tensor([table[n] for n in names]).float().reshape(shape))
        rows, columns = len(latitude) // size, len(longitude) // size
        self.resolution = (network.encoder.latent_levels, rows, columns)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    @contextlib.contextmanager
    def _constant_encodings(self, time_encoding: Tensor) -> Iterator[None]:
        replaced = [
            (encoder, "pos_scale_enc", lambda *_, **__: (self.position, self.scale)),
            (encoder, "absolute_time_expansion", lambda *_: time_encoding),
            (encoder, "levels_expansion", lambda *_: self.levels_in),
            (decoder, "levels_expansion", lambda *_: self.levels_out),
            (encoder, "lead_time_expansion", lambda t, _: self.lead_encoding.expand(t.shape[0], -1)),
            (swin3d, "lead_time_expansion", lambda t, _: self.lead_encoding.expand(t.shape[0], -1)),
            (Metadata, "__post_init__", lambda _: None),
        ]
        before = [getattr(owner, name) for owner, name, _ in replaced]
        try:
            for owner, name, value in replaced:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(replaced, before, strict=True):
                setattr(owner, name, value)

    def forward(
        self, surf: Tensor, atmos: Tensor, static: Tensor, time_encoding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return surf_next and atmos_next."""
        n, net = surf.shape[0], self.network
        surf = (surf - self.surf_mean) / self.surf_deviation
        atmos = (atmos - self.atmos_mean) / self.atmos_deviation
        static = (static - self.static_mean) / self.static_deviation
        with self._constant_encodings(time_encoding):
            batch = Batch(
                {v: surf[:, :, i] for i, v in enumerate(SURFACE)},
                {v: static[None, None, i].expand(n, 2, -1, -1) for i, v in enumerate(STATIC)},
                {v: atmos[:, :, i] for i, v in enumerate(ATMOS)},
                Metadata(lat=self.latitude, lon=self.longitude, time=(START,) * n, atmos_levels=self.levels),
            )
            lead = self.lead.expand(n)
            x = net.encoder(batch, lead_times=lead)
            x = net.backbone(x, lead_times=lead, patch_res=self.resolution, rollout_step=0)
            hours = [net.timestep.total_seconds() / 3600] * n
            made = net.decoder(x, batch, lead_times=hours, patch_res=self.resolution)
        surf_next = torch.stack([made.surf_vars[v] for v in SURFACE], dim=1)
        atmos_next = torch.stack([made.atmos_vars[v] for v in ATMOS], dim=1)
        surf_next = surf_next.reshape(n, len(SURFACE), *surf.shape[-2:])
        atmos_next = atmos_next.reshape(n, len(ATMOS), len(self.levels), *surf.shape[-2:])
        return (
            surf_next * self.surf_deviation + self.surf_mean,
            atmos_next * self.atmos_deviation + self.atmos_mean,
        )
