"""Build a model with Pangu-Weather's structure, of any grid and size, with random weights, using only NumPy and onnx.

    input [5, levels, lat, lon], input_surface [4, lat, lon]                     physical units in and out
      standardise, append constant maps, pad, cut into patches -> tokens [levels' + 1, lat', lon', dim]
      layer1 | down (2 x 2 columns merged) | layer2, layer3 | up | layer4, concatenated with layer1's output
      recover patches, crop, de-standardise
    block: x + LN(attention(x)), then x + LN(mlp(x)); attention in windows of (z, lat, lon), every second block
           shifted by half a window; scores + bias[window type] (+ mask); longitude is periodic

The bias is stored as in the released file ("expanded": one [1, types, heads, n, n] tensor per block, read by Add, 91 %
of its weights) or as it is trained ("table": gathered by pairs of places). Layout and order of the weights are those
of the released file (see :mod:`tqs_models.pangu`). At (721, any longitude, 13 levels), width 192, the model has
276,659,936 weights. Weights are a pure function of shape and seed.
Source: Bi et al., Nature 619 (2023), and the published pseudocode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_models.pangu import climate
from tqs_models.pangu.nodes import Nodes
from tqs_passes.errors import InputError

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PanguShape:
    """Sizes of the model; all defaults except the longitude are those of the released file.

    Parameters
    ----------
    lat, lon, levels : int
        Grid points. The number of weights does not depend on `lon`.
    dim, heads : int
        Width and heads of the outer layers; the inner layers have twice as many of both.
    depths : tuple of int
        Number of blocks in layers 1 to 4.
    window, patch : tuple of int
        Sizes along (z, lat, lon).
    bias : str
        "expanded" or "table".
    norms : str
        "fused" is LayerNormalization; "decomposed" is the form that exporters write below opset 17.

    Raises
    ------
    InputError
        A size is below 1, or `dim` is not a multiple of `heads`.
    """

    lat: int = 721
    lon: int = 96
    levels: int = 13
    dim: int = 192
    heads: int = 6
    depths: tuple[int, int, int, int] = (2, 6, 6, 2)
    window: tuple[int, int, int] = (2, 6, 12)
    patch: tuple[int, int, int] = (2, 4, 4)
    bias: Literal["expanded", "table"] = "expanded"
    norms: Literal["fused", "decomposed"] = "fused"

    def __post_init__(self) -> None:
        """Validate the sizes."""
        sizes = (self.lat, self.lon, self.levels, self.dim, self.heads, *self.window, *self.patch)
        if min(sizes) < 1 or min(self.depths) < 0:
            raise InputError("every size must be at least 1", where="PanguShape", todo="Give larger sizes")
        if self.dim % self.heads:
            raise InputError(
                f"dim {self.dim} is not a multiple of heads {self.heads}",
                where="PanguShape",
                todo="Change dim or heads",
            )

    @property
    def outer(self) -> tuple[int, int, int]:
        """Number of tokens along (z, lat, lon) in layers 1 and 4: the surface is an additional level."""
        z, h, w = (-(-n // p) for n, p in zip((self.levels, self.lat, self.lon), self.patch, strict=True))
        return z + 1, h, w

    @property
    def inner(self) -> tuple[int, int, int]:
        """Number of tokens in layers 2 and 3."""
        z, h, w = self.outer
        return z, -(-h // 2), -(-w // 2)


TINY = PanguShape(lat=49, lon=96, dim=24, heads=2, window=(2, 3, 6))
"""1.35 M weights: small enough for a test."""


def pair_index(window: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the row of each pair of places in a bias table: int64 [n, n], where n is the places of a window.

    A pair is identified by both places along z and latitude, and by their distance along longitude:
    (2·lon − 1)·lat²·z² rows.
    """
    z, h, w = (g.reshape(-1) for g in np.meshgrid(*(np.arange(n) for n in window), indexing="ij"))
    wz, wh, ww = window
    index = (z[:, None] + z[None] * wz) * (2 * ww - 1) * wh**2
    index += (h[:, None] + h[None] * wh) * (2 * ww - 1)
    return index + w[:, None] - w[None] + ww - 1


def build(shape: PanguShape, seed: int = 0, *, opset: int = 17) -> onnx.ModelProto:
    """Return the model.

    Parameters
    ----------
    shape : PanguShape
    seed : int
    opset : int
        11 to 17; LayerNormalization needs 17.

    Raises
    ------
    InputError
        The norms are not available in this opset.
    """
    if not 11 <= opset <= 17 or (opset < 17 and shape.norms == "fused"):
        raise InputError(
            f"opset {opset} does not go with {shape.norms} norms",
            where="build",
            todo="Use opset 17, or decomposed norms with opset 11 to 17",
        )
    return _Builder(shape, seed, opset).model()


class _Builder:
    """Emits the graph from input to output and draws each weight when it is read."""

    def __init__(self, shape: PanguShape, seed: int, opset: int) -> None:
        self.s, self.opset, self.g = shape, opset, Nodes()
        self.rng = np.random.default_rng(seed)

    def model(self) -> onnx.ModelProto:
        s, g = self.s, self.g
        x = self.embed()
        skip = x = self.layer("layer1", x, s.depths[0], s.outer, 1)
        x = self.down(x)
        x = self.layer("layer2", x, s.depths[1], s.inner, 2)
        x = self.layer("layer3", x, s.depths[2], s.inner, 2)
        x = self.up(x)
        x = self.layer("layer4", x, s.depths[3], s.outer, 1)
        self.recover(g.op("Concat", skip, x, axis=3))
        upper, surface = (5, s.levels, s.lat, s.lon), (4, s.lat, s.lon)
        return g.model(
            {"input": upper, "input_surface": surface},
            {"output": upper, "output_surface": surface},
            opset=self.opset,
            properties={"license": "Apache-2.0 (random weights)"},
        )

    def normal(self, *sides: int, scale: float = 1.0, mean: float = 0.0) -> Array:
        value = self.rng.standard_normal(sides, np.float32)
        value *= scale
        value += mean
        return value

    def linear(self, name: str, x: str, fan_in: int, fan_out: int, *, bias: bool = True) -> str:
        g = self.g
        x = g.op("MatMul", x, g.folded("MatMul", self.normal(fan_in, fan_out, scale=fan_in**-0.5)))
        return g.op("Add", g.weight(f"{name}.bias", self.normal(fan_out, scale=0.02)), x) if bias else x

    def norm(self, name: str, x: str, width: int) -> str:
        g = self.g
        scale = g.weight(f"{name}.weight", self.normal(width, scale=0.1, mean=1.0))
        bias = g.weight(f"{name}.bias", self.normal(width, scale=0.1))
        if self.s.norms == "fused":
            return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
        x = g.op("Sub", x, g.op("ReduceMean", x, axes=[-1]))
        variance = g.op("ReduceMean", g.op("Pow", x, g.scalar(2.0)), axes=[-1])
        x = g.op("Div", x, g.op("Sqrt", g.op("Add", variance, g.scalar(1e-5))))
        return g.op("Add", g.op("Mul", x, scale), bias)

    def conv(self, name: str, x: str, fan_in: int, fan_out: int) -> str:
        g = self.g
        weight = g.weight(f"{name}.weight", self.normal(fan_out, fan_in, 1, scale=fan_in**-0.5))
        bias = g.weight(f"{name}.bias", self.normal(fan_out, scale=0.02))
        return g.op("Conv", x, weight, bias, kernel_shape=[1])

    def embed(self) -> str:
        s, g = self.s, self.g
        (z, h, w), (pz, ph, pw) = s.outer, s.patch
        mean, deviation = climate.upper(s.levels)
        x = g.op("Div", g.op("Sub", "input", g.constant(mean)), g.constant(deviation))
        x = g.op("Concat", x, g.constant(self.normal(1, s.levels, s.lat, s.lon)), axis=0)
        x = g.pad(x, (0, (z - 1) * pz - s.levels, h * ph - s.lat, w * pw - s.lon))
        x = g.transpose(g.reshape(x, 6, z - 1, pz, h, ph, w, pw), 0, 2, 4, 6, 1, 3, 5)
        x = self.conv("conv", g.reshape(x, 1, 6 * pz * ph * pw, -1), 6 * pz * ph * pw, s.dim)
        mean, deviation = climate.surface()
        y = g.op("Div", g.op("Sub", "input_surface", g.constant(mean)), g.constant(deviation))
        y = g.op("Concat", y, g.constant(self.normal(3, s.lat, s.lon)), axis=0)
        y = g.pad(y, (0, h * ph - s.lat, w * pw - s.lon))
        y = g.transpose(g.reshape(y, 7, h, ph, w, pw), 0, 2, 4, 1, 3)
        y = self.conv("conv_surface", g.reshape(y, 1, 7 * ph * pw, -1), 7 * ph * pw, s.dim)
        x = g.op("Concat", y, x, axis=2)
        return g.reshape(g.transpose(x, 0, 2, 1), z, h, w, s.dim)

    def layer(self, name: str, x: str, n: int, grid: tuple[int, int, int], factor: int) -> str:
        for i in range(n):
            x = self.block(f"{name}.blocks.{i}", x, grid, factor, shifted=i % 2 == 1)
        return x

    def block(self, name: str, x: str, grid: tuple[int, int, int], factor: int, *, shifted: bool) -> str:
        g, d = self.g, self.s.dim * factor
        y = self.attention(f"{name}.attention", x, grid, factor, shifted=shifted)
        x = g.op("Add", x, self.norm(f"{name}.norm1", y, d))
        y = self.linear(f"{name}.linear.linear1", x, d, 4 * d)
        half = g.op("Mul", y, g.scalar(0.5))
        y = g.op("Erf", g.op("Div", y, g.scalar(2**0.5)))
        y = g.op("Mul", half, g.op("Add", y, g.scalar(1.0)))
        y = self.linear(f"{name}.linear.linear2", y, 4 * d, d)
        return g.op("Add", x, self.norm(f"{name}.norm2", y, d))

    def attention(self, name: str, x: str, grid: tuple[int, int, int], factor: int, *, shifted: bool) -> str:
        """Map tokens [z, lat, lon, d] to the same shape; windows are [lon windows, types, places, d]."""
        s, g = self.s, self.g
        d, heads, (wz, wh, ww) = s.dim * factor, s.heads * factor, s.window
        nz, nh, nw = (-(-n // w) for n, w in zip(grid, s.window, strict=True))
        padded = (nz * wz, nh * wh, nw * ww)
        types, n, depth = nz * nh, wz * wh * ww, d // heads
        shift = (wz // 2, wh // 2, ww // 2) if shifted else (0, 0, 0)
        x = g.pad(x, (*(p - n for p, n in zip(padded, grid, strict=True)), 0))
        x = g.roll(x, [-k for k in shift], padded)
        x = g.transpose(g.reshape(x, nz, wz, nh, wh, nw, ww, d), 4, 0, 2, 1, 3, 5, 6)
        x = self.linear(f"{name}.linear1", g.reshape(x, nw, types, n, d), d, 3 * d)
        x = g.transpose(g.reshape(x, nw, types, n, 3, heads, depth), 3, 0, 1, 4, 2, 5)
        q, k, v = (g.op("Gather", x, g.constant(np.array(i, np.int64)), axis=0) for i in range(3))
        q = g.op("Mul", q, g.scalar(depth**-0.5))
        scores = g.op("MatMul", q, g.transpose(k, 0, 1, 2, 4, 3))
        scores = g.op("Add", scores, self.bias(name, types, heads, n))
        mask = _mask(padded, s.window, shift)
        if mask is not None:
            scores = g.op("Add", scores, g.constant(mask))
        x = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
        x = g.reshape(g.transpose(x, 0, 1, 3, 2, 4), nw, types, n, d)
        x = self.linear(f"{name}.linear2", x, d, d)
        x = g.transpose(g.reshape(x, nw, nz, nh, wz, wh, ww, d), 1, 3, 2, 4, 0, 5, 6)
        x = g.roll(g.reshape(x, *padded, d), shift, padded)
        for axis, (p, side) in enumerate(zip(padded, grid, strict=True)):
            x = g.cut(x, axis, 0, side) if p > side else x
        return x

    def bias(self, name: str, types: int, heads: int, n: int) -> str:
        g, window = self.g, self.s.window
        if self.s.bias == "expanded":
            return g.folded("Add", self.normal(1, types, heads, n, n, scale=0.5))
        rows = (2 * window[2] - 1) * window[1] ** 2 * window[0] ** 2
        table = g.weight(f"{name}.earth_specific_bias", self.normal(rows, types, heads, scale=0.5))
        x = g.op("Gather", table, g.constant(pair_index(window).reshape(-1)), axis=0)
        x = g.transpose(g.reshape(x, n, n, types, heads), 2, 3, 0, 1)
        return g.reshape(x, 1, types, heads, n, n)

    def down(self, x: str) -> str:
        g, d, (z, h, w), (_, h2, w2) = self.g, self.s.dim, self.s.outer, self.s.inner
        x = g.pad(x, (0, 2 * h2 - h, 2 * w2 - w, 0))
        x = g.transpose(g.reshape(x, z, h2, 2, w2, 2, d), 0, 1, 3, 2, 4, 5)
        x = self.norm("downsample.norm", g.reshape(x, z, h2, w2, 4 * d), 4 * d)
        return self.linear("downsample.linear", x, 4 * d, 2 * d, bias=False)

    def up(self, x: str) -> str:
        g, d, (z, h, w), (_, h2, w2) = self.g, self.s.dim, self.s.outer, self.s.inner
        x = self.linear("upsample.linear1", x, 2 * d, 4 * d, bias=False)
        x = g.transpose(g.reshape(x, z, h2, w2, 2, 2, d), 0, 1, 3, 2, 4, 5)
        x = g.cut(g.cut(g.reshape(x, z, 2 * h2, 2 * w2, d), 1, 0, h), 2, 0, w)
        return self.linear("upsample.linear2", self.norm("upsample.norm", x, d), d, d, bias=False)

    def recover(self, x: str) -> None:
        s, g = self.s, self.g
        (z, h, w), (pz, ph, pw), d = s.outer, s.patch, 2 * s.dim
        x = g.transpose(x, 3, 0, 1, 2)
        y = self.conv("out", g.reshape(g.cut(x, 1, 1, z), 1, d, -1), d, 5 * pz * ph * pw)
        y = g.transpose(g.reshape(y, 5, pz, ph, pw, z - 1, h, w), 0, 4, 1, 5, 2, 6, 3)
        y = g.reshape(y, 5, (z - 1) * pz, h * ph, w * pw)
        y = g.cut(g.cut(g.cut(y, 1, 0, s.levels), 2, 0, s.lat), 3, 0, s.lon)
        mean, deviation = climate.upper(s.levels)
        g.op("Add", g.op("Mul", y, g.constant(deviation)), g.constant(mean), out="output")
        y = self.conv("out_surface", g.reshape(g.cut(x, 1, 0, 1), 1, d, -1), d, 4 * ph * pw)
        y = g.transpose(g.reshape(y, 4, ph, pw, h, w), 0, 3, 1, 4, 2)
        y = g.cut(g.cut(g.reshape(y, 4, h * ph, w * pw), 1, 0, s.lat), 2, 0, s.lon)
        mean, deviation = climate.surface()
        g.op("Add", g.op("Mul", y, g.constant(deviation)), g.constant(mean), out="output_surface")


def _mask(
    padded: tuple[int, int, int], window: tuple[int, int, int], shift: tuple[int, int, int]
) -> Array | None:
    """Return float32 [1, types, 1, n, n]: -100 between places adjacent only due to a roll along z or latitude."""
    if not any(shift[:2]):
        return None
    (z, h, _), (wz, wh, ww) = padded, window
    far_z, far_h = np.arange(z) >= z - shift[0], np.arange(h) >= h - shift[1]
    label = 2 * far_z[:, None] + far_h[None, :]
    label = label.reshape(z // wz, wz, h // wh, wh).transpose(0, 2, 1, 3).reshape(-1, wz * wh)
    label = label.repeat(ww, axis=1)
    apart = label[:, :, None] != label[:, None, :]
    return np.where(apart, np.float32(-100), np.float32(0))[None, :, None]
