"""Views a weight as matrices [group, out, in], and the other operand of its reader as rows [group, n, in].

    reader          weight                      matrices                        rows
    MatMul, B       [*, K, N]                   [prod *, N, K]                  A [*, …, M, K]
    MatMul, A       [*, M, K]                   [prod *, M, K]                  B [*, …, K, N], its columns
    Gemm, B         [K, N], transB: [N, K]      [1, N, K]                       A [M, K], transA: [K, M]
    Gemm, A         [M, K], transA: [K, M]      [1, M, K]                       B [K, N], transB: [N, K]
    Conv, W         [M, C/g, *kernel]           [g, M/g, C/g · prod kernel]     every window of the padded input

`recurrent_view` has the views of LSTM, GRU and RNN, `contraction_view` those of Einsum and ConvTranspose; `uses` finds
the readers. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rounding.compensate import Matrix
from tqs_onnx.rounding.windows import windows_of


class View(Protocol):
    """The view that one reader has of a weight (see the module docstring)."""

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return the weight as [group, out, in], in its dtype."""
        ...

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return matrices as a weight of `shape`: the inverse of `matrices`."""
        ...

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return the inputs of a weight of `shape` as float64 [group, n, in]; `also`: further tensors (see `Use`)."""
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

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
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
        # An axis along which one matrix is used for all has no groups of its own: its rows are more rows.
        first = len(lead) - len(batch)
        own = [first + i for i, size in enumerate(batch) if size == lead[first + i]]
        grouped = np.moveaxis(full, own, range(len(own)))
        return grouped.reshape(int(np.prod(batch)), -1, n_in).astype(np.float64)


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

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return [group, windows, channels · kernel]."""
        kernel = shape[2:]
        ones = (1,) * len(kernel)
        strides, dilations = self.strides or ones, self.dilations or ones
        spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
        margins = self._padding(activation.shape[2:], strides, spans)
        return windows_of(activation, kernel, strides, dilations, margins, self.groups)

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
