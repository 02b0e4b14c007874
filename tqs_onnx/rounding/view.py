"""Views a weight as matrices [group, out, in], and the other operand of its reader as rows [group, n, in].

    reader          weight                      matrices                        rows
    MatMul, B       [*, K, N]                   [prod *, N, K]                  A [*, …, M, K]
    MatMul, A       [*, M, K]                   [prod *, M, K]                  B [*, …, K, N], its columns
    Gemm, B         [K, N], transB: [N, K]      [1, N, K]                       A [M, K], transA: [K, M]
    Gemm, A         [M, K], transA: [K, M]      [1, M, K]                       B [K, N], transB: [N, K]
    Conv, W         [M, C/g, *kernel]           [g, M/g, C/g · prod kernel]     every window of the padded input

A matrix may reach its reader through Transpose and Identity. ConvTranspose, recurrent weights, Einsum and tables have
no such view and are rounded without data. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_onnx.rounding.compensate import Matrix


class View(Protocol):
    """The view that one reader has of a weight (see the module docstring)."""

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight as [group, out, in], in its dtype."""
        ...

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return matrices as a weight of `shape`: the inverse of `matrices`."""
        ...

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...]) -> Matrix:
        """Return the inputs of a weight of `shape` as float64 [group, n, in]."""
        ...


@dataclass(frozen=True, slots=True)
class MatrixView:
    """The view of a weight of MatMul or Gemm.

    Parameters
    ----------
    out_first : bool
        The stored weight ends in [out, in]; otherwise in [in, out].
    in_last : bool
        The activation ends in [n, in]; otherwise in [in, n].
    """

    out_first: bool
    in_last: bool

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]."""
        w = weight.reshape(-1, *weight.shape[-2:])
        return w if self.out_first else np.swapaxes(w, 1, 2)

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        w = matrices if self.out_first else np.swapaxes(matrices, 1, 2)
        return np.ascontiguousarray(w).reshape(shape)

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...]) -> Matrix:
        """Return [group, n, in]."""
        a = activation if activation.ndim > 1 else activation[None, :]
        if not self.in_last and activation.ndim > 1:
            a = np.swapaxes(a, -1, -2)
        batch = shape[:-2]
        n_in = a.shape[-1]
        if not batch:
            return a.reshape(1, -1, n_in).astype(np.float64)
        lead = np.broadcast_shapes(a.shape[:-2], batch)
        full = np.broadcast_to(a, (*lead, *a.shape[-2:]))
        n_group = int(np.prod(batch))
        stacked = full.reshape(-1, n_group, *a.shape[-2:])
        return np.moveaxis(stacked, 1, 0).reshape(n_group, -1, n_in).astype(np.float64)


@dataclass(frozen=True, slots=True)
class ConvView:
    """The view of a convolution weight.

    Parameters
    ----------
    groups : int
    strides, dilations, pads : tuple of int
        Per spatial axis; `pads` in ONNX order: all begins, then all ends. Empty: ones, ones, zeros.
    auto_pad : str
        `NOTSET`, `VALID`, `SAME_UPPER` or `SAME_LOWER`.
    """

    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        return np.ascontiguousarray(matrices).reshape(shape)

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...]) -> Matrix:
        """Return [group, windows, channels · kernel]."""
        kernel = shape[2:]
        rank = len(kernel)
        strides, dilations = self.strides or (1,) * rank, self.dilations or (1,) * rank
        spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
        padded = np.pad(activation, [(0, 0), (0, 0), *self._padding(activation.shape[2:], strides, spans)])
        axes = tuple(range(2, 2 + rank))
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
        every = [slice(None)] * 2
        steps = [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
        windows = windows[tuple(every + steps)]
        batch, channels = windows.shape[:2]
        split = windows.reshape(batch, self.groups, channels // self.groups, *windows.shape[2:])
        # [batch, group, channel, place…, kernel…] → [group, batch, place…, channel, kernel…]
        places = tuple(range(3, 3 + rank))
        taps = tuple(range(3 + rank, 3 + 2 * rank))
        ordered = split.transpose(1, 0, *places, 2, *taps)
        n_in = channels // self.groups * int(np.prod(kernel))
        return ordered.reshape(self.groups, -1, n_in).astype(np.float64)

    def _padding(
        self, dims: Sequence[int], strides: Sequence[int], spans: Sequence[int]
    ) -> list[tuple[int, int]]:
        rank = len(dims)
        if self.auto_pad in ("NOTSET", ""):
            pads = self.pads or (0,) * (2 * rank)
            return [(pads[i], pads[rank + i]) for i in range(rank)]
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        found: list[tuple[int, int]] = []
        for dim, stride, span in zip(dims, strides, spans, strict=True):
            total = max(0, (-(-dim // stride) - 1) * stride + span - dim)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.auto_pad == "SAME_UPPER" else (more, less))
        return found


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a weight is multiplied.

    Parameters
    ----------
    position : int
        Index of the node in the main graph.
    activation : str
        Name of the tensor that is multiplied with the weight.
    view : MatrixView or ConvView
    """

    position: int
    activation: str
    view: MatrixView | ConvView


@dataclass(frozen=True, slots=True)
class Uses:
    """All places where a weight is read.

    Parameters
    ----------
    position : int
        Index of the first node that reads it; the number of nodes if no node of the main graph reads it.
    uses : tuple of Use
        Empty if `why_not` is set.
    why_not : str
        Why the weight is rounded without data; empty if it is not.
    """

    position: int
    uses: tuple[Use, ...] = ()
    why_not: str = ""


@dataclass(slots=True)
class _Found:
    n_readers: int = 0
    uses: list[Use] = field(default_factory=list[Use])
    position: int | None = None
    why_not: str = ""


def uses_of(
    graph: onnx.GraphProto, shapes: dict[str, tuple[int, ...]], n_readers: dict[str, int]
) -> dict[str, Uses]:
    """Return where each weight is multiplied, and with what.

    Parameters
    ----------
    graph : onnx.GraphProto
        Main graph of the lifted model.
    shapes : dict of str to tuple of int
        Shapes of the weights.
    n_readers : dict of str to int
        Number of readers that the survey found; a reader elsewhere (in a body, after a Reshape) excludes data-aware
        rounding.
    """
    found = {name: _Found() for name in shapes}
    # Tensor → (weight, whether its last two axes are swapped against the stored ones)
    moved = {name: (name, False) for name in shapes}
    for position, node in enumerate(graph.node):
        for index, name in enumerate(node.input):
            if name not in moved:
                continue
            weight, swapped = moved[name]
            entry = found[weight]
            entry.position = position if entry.position is None else entry.position
            behind = _behind(node, len(shapes[weight]))
            if behind is not None:
                moved[node.output[0]] = (weight, swapped ^ behind)
                continue
            entry.n_readers += 1
            use = _use(node, index, position, swapped, shapes[weight])
            if isinstance(use, str):
                entry.why_not = entry.why_not or use
            else:
                entry.uses.append(use)
    return {name: _settled(entry, n_readers[name], len(graph.node)) for name, entry in found.items()}


def _settled(entry: _Found, n_readers: int, n_nodes: int) -> Uses:
    position = n_nodes if entry.position is None else entry.position
    why = entry.why_not
    if not why and entry.n_readers < max(n_readers, 1):
        why = "a reader lies in a body or behind nodes that move values"
    if not why and len({_split(use.view) for use in entry.uses}) > 1:
        why = "its readers disagree on which axis holds the outputs"
    return Uses(position, (), why) if why else Uses(position, tuple(entry.uses))


def _split(view: MatrixView | ConvView) -> tuple[str, int]:
    """Return the properties of a view that determine how it splits a weight into matrices."""
    if isinstance(view, ConvView):
        return "Conv", view.groups
    return "MatMul", int(view.out_first)


def _behind(node: onnx.NodeProto, rank: int) -> bool | None:
    """Return whether a node that only moves a matrix swaps its axes; None for any other node."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Identity":
        return False
    if node.op_type == "Transpose" and rank == 2:
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
        return perm == [1, 0]
    return None


def _use(node: onnx.NodeProto, index: int, position: int, swapped: bool, shape: tuple[int, ...]) -> Use | str:
    """Return the use of a weight by a node, or the reason why there is no rule for it."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        return f"no rule for {node.domain}.{node.op_type}"
    if node.op_type == "MatMul" and len(shape) >= 2:
        # As input B the weight ends in [in, out]; as input A in [out, in].
        return Use(position, node.input[1 - index], MatrixView((index == 0) ^ swapped, index == 1))
    if node.op_type == "Gemm" and index < 2 and len(shape) == 2:
        flipped = bool(attributes.get(("transA", "transB")[index], 0))
        other = bool(attributes.get(("transB", "transA")[index], 0))
        view = MatrixView((index == 0) ^ swapped ^ flipped, (index == 1) ^ other)
        return Use(position, node.input[1 - index], view)
    if node.op_type == "Conv" and index == 1 and not swapped:
        auto_pad = attributes.get("auto_pad", b"NOTSET")
        conv = ConvView(
            int(attributes.get("group", 1)),
            tuple(attributes.get("strides", ())),
            tuple(attributes.get("dilations", ())),
            tuple(attributes.get("pads", ())),
            auto_pad.decode() if isinstance(auto_pad, bytes) else str(auto_pad),
        )
        return Use(position, node.input[0], conv)
    return f"no rule for {node.op_type}"
