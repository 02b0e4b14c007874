"""Values for trial calls: smooth noise for floats, and for integers what the graph compares them with."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from tqs_onnx.rollout.draft.trial import Array, Fill, Layout, Shape
from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_passes.files.model import Model

#: Shortest axis along which noise is smoothed.
_LONG = 8


def fill_of(model: Model) -> Fill:
    """Return a function that makes one call's value of an input; it depends on its name and shape only."""
    return lambda port, shape: _values(port, shape, 0, model)


def cases_of(model: Model, signature: ModelSignature, layout: Layout, n: int) -> dict[str, Array]:
    """Return `n` cases [case, *core] of every input, each from a generator of its own."""
    return {
        port.name: np.stack([_values(port, layout.cores[port.name], case, model) for case in range(n)])
        for port in signature.inputs
    }


def _values(port: Port, shape: Shape, case: int, model: Model) -> Array:
    rng = np.random.default_rng([zlib.crc32(port.name.encode()), case])
    if port.dtype.kind == "b":
        return np.zeros(shape, port.dtype)
    if port.dtype.kind != "f":
        known = compared_with(model, port.name)
        return np.full(shape, known[0] if known else 0, port.dtype)
    return smooth(shape, rng).astype(port.dtype)


def smooth(shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise of unit variance about a random level, smoothed along every long axis."""
    noise = rng.normal(size=shape)
    for axis, size in enumerate(shape):
        if size >= _LONG:
            noise = gaussian_filter1d(noise, min(size / 16, 8.0), axis=axis, mode="nearest")
    spread = float(noise.std()) if noise.size > 1 else 0.0
    return (noise / spread if spread > 0 else noise) + 0.5 * rng.normal()


def compared_with(model: Model, name: str) -> tuple[int, ...]:
    """Return the constants that the graph compares an input with (`Equal`), in graph order."""
    graph = model.proto.graph
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    found: list[int] = []
    for node in graph.node:
        if node.op_type == "Equal" and name in node.input:
            for other in node.input:
                if other in stored and not stored[other].external_data:
                    found += [int(v) for v in onnx.numpy_helper.to_array(stored[other]).ravel()[:16]]
    return tuple(dict.fromkeys(found))
