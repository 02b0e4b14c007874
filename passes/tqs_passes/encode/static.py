"""Store a weight so that its reader runs in 8 bits: its input passes through a range that was fixed in advance.

Before → after, for a MatMul, a plain Gemm, or a Conv with the weight w ::

    x, w ─▶ MatMul ─▶ y     x ─▶ QuantizeLinear ─▶ DequantizeLinear ─▶ MatMul ─▶ y
                            w (int8) ─▶ DequantizeLinear ─▶ MatMul
    x, w, b ─▶ Gemm ─▶ y    the same, then b is added; with transB = 1 the integers are stored transposed
    x, w, b ─▶ Conv ─▶ y    the same, then QuantizeLinear ─▶ DequantizeLinear ─▶ y
    … Conv ─▶ Relu ─▶ y     the same, the Relu before the QuantizeLinear
    … MatMul ─▶ Add(b) ─▶ y as for a Gemm

This is explicit quantization as TensorRT, OpenVINO and onnxruntime read it: one scale per activation, one scale per
channel of the weight, biases in float. onnxruntime 1.31 fuses it on the CPU to MatMulIntegerToFloat and QLinearConv. It
fuses a Gemm or a Conv only if the output is rounded too, hence MatMul instead of Gemm, and the rounded output. It also
merges a MatMul of two axes with an Add into a Gemm that it then does not fuse. With uint8 a stored vector b is
therefore subtracted as −b, which it folds at load; a product to which a computed tensor is added stays such a Gemm.
Readers of one tensor share one pair of nodes. A range is uint8 with a zero point (CPU), or int8 with zero point 0
(TensorRT).
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tqs_passes.encode.fragment import Fragment

#: Lowest opset with per-axis DequantizeLinear.
STATIC_OPSET = 13
Kind = Literal["uint8", "int8"]
_BOUNDS = {"uint8": (0, 255), "int8": (-127, 127)}


class Range(BaseModel):
    """The range of an activation: v ≈ scale · (q − zero_point), q an 8-bit integer.

    Attributes
    ----------
    kind : {"uint8", "int8"}
        `int8` is symmetric: its zero point is 0.
    scale : float
        A float32 above zero.
    zero_point : int
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    scale: float = Field(gt=0)
    zero_point: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse a zero point outside the type."""
        low, high = _BOUNDS[self.kind]
        if not low <= self.zero_point <= high or (self.kind == "int8" and self.zero_point):
            raise ValueError(f"{self.zero_point} is not a zero point of {self.kind}")
        return self

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
        """Return the scale and the zero point as QuantizeLinear takes them: scalars of float32 and of the kind."""
        return np.array(self.scale, np.float32), np.array(self.zero_point, self.kind)

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x as QuantizeLinear and DequantizeLinear would return it."""
        low, high = (0, 255) if self.kind == "uint8" else (-128, 127)
        scale = np.float32(self.scale)
        levels = np.clip(np.rint(x / scale) + self.zero_point, low, high)
        rounded: NDArray[np.float32] = ((levels - self.zero_point) * scale).astype(np.float32)
        return rounded


def range_between(low: float, high: float, kind: Kind) -> Range:
    """Return the range that holds low … high and 0.

    >>> range_between(-1.0, 1.55, "uint8").zero_point, range_between(-1.0, 1.27, "int8").scale < 0.0101
    (100, True)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    least, most = _BOUNDS[kind]
    width = max(-low, high) / most if kind == "int8" else (high - low) / (most - least)
    # A tensor of zeros has any range; a scale that is not normal would not divide.
    scale = np.float32(width) if width > float(np.finfo(np.float32).tiny) else np.float32(1)
    zero = 0 if kind == "int8" else int(np.clip(np.rint(-low / float(scale)), least, most))
    return Range(kind=kind, scale=float(scale), zero_point=zero)


def read_statically(
    fragment: Fragment,
    name: str,
    reader: onnx.NodeProto,
    ranges: tuple[Range, ...],
    follower: onnx.NodeProto | None = None,
) -> Fragment:
    """Replace a weight's reader in a fragment that already decodes the weight under its name.

    Parameters
    ----------
    fragment : Fragment
    name : str
        Name of the decoded weight; ``[K, N]`` also for a Gemm with transB = 1.
    reader : onnx.NodeProto
        The MatMul, plain Gemm or Conv to replace.
    ranges : tuple of Range
        That of its input; for a Conv also that of its output, behind the Relu if there is one.
    follower : onnx.NodeProto or None
        The Relu behind a Conv or the Add behind a MatMul (`tqs_passes.graph.readers.followers_in`), replaced too.
    """
    x = _passed(fragment, reader.input[0], ranges[0])
    if reader.op_type == "Conv":
        reading = _convolution(fragment, reader, [x, name], ranges[1], follower)
    else:
        reading = _product(fragment, reader, [x, name], ranges[0].kind, follower)
    fragment.reader, fragment.reading = reader, reading.nodes
    return fragment


def _convolution(
    fragment: Fragment, reader: onnx.NodeProto, inputs: list[str], out: Range, relu: onnx.NodeProto | None
) -> Fragment:
    """Return a Conv whose output is rounded, behind the Relu if there is one, which is then replaced."""
    y, made = reader.output[0], f"{fragment.prefix}y"
    reading = Fragment(made, fragment.namespace)
    conv = onnx.NodeProto()
    conv.CopyFrom(reader)
    conv.input[:2] = inputs
    reading.nodes.append(conv)
    if relu is None:
        conv.output[:] = [made]
    else:
        reading.nodes.append(helper.make_node("Relu", [y], [made], name=relu.name or None))
        y, fragment.also = relu.output[0], [relu]
    reading.nodes += _pair(fragment, made, y, out, y, levels="o")
    return reading


def _product(
    fragment: Fragment, reader: onnx.NodeProto, inputs: list[str], kind: Kind, add: onnx.NodeProto | None
) -> Fragment:
    """Return the product of a MatMul or Gemm with its bias, or that of the Add behind it, which is then replaced."""
    y, bias = reader.output[0], reader.input[2] if len(reader.input) > 2 else ""
    if add is not None and kind == "uint8":
        bias = next(b for b in add.input if b != y)
        y, fragment.also = add.output[0], [add]
    reading = Fragment(f"{fragment.prefix}y", fragment.namespace)
    if not bias:
        reading.op("MatMul", inputs, output=y, name=reader.name)
        return reading
    product = reading.op("MatMul", inputs, name=reader.name)
    if kind == "uint8":
        reading.op("Sub", [product, reading.op("Neg", [bias])], output=y)
    else:
        reading.op("Add", [product, bias], output=y)
    return reading


def _passed(fragment: Fragment, x: str, chosen: Range) -> str:
    """Return the name of a tensor that has passed its range; all readers share the nodes."""
    out = f"{fragment.namespace}.q.{x}.d"
    piece = Fragment(out, fragment.namespace, late=True)
    piece.nodes += _pair(piece, x, out, chosen, x, levels="q")
    fragment.share(out, piece)
    return out


def _pair(
    fragment: Fragment, x: str, out: str, chosen: Range, tensor: str, *, levels: str
) -> list[onnx.NodeProto]:
    """Share the range of a tensor, and return the two nodes through which x passes it.

    The integers of a Conv's output and those that its readers make of it need different names: `levels` ends them.
    """
    stem = f"{fragment.namespace}.q.{tensor}."
    parameters = Fragment(f"{stem}s", fragment.namespace)
    scale, zero = chosen.arrays()
    names = [parameters.store(scale, f"{stem}s"), parameters.store(zero, f"{stem}z")]
    fragment.share(f"{stem}s", parameters)
    made = f"{stem}{levels}"
    return [
        helper.make_node("QuantizeLinear", [x, *names], [made]),
        helper.make_node("DequantizeLinear", [made, *names], [out]),
    ]
