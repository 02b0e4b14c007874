"""Views the weights of Einsum and ConvTranspose as matrices [group, out, in], and the other operand as rows.

    reader          weight                 matrices                     rows
    Einsum          letters of w           [shared, only w, summed]     [shared, only x, summed]
    ConvTranspose   [C, M/g, *kernel]      [g, M/g, C/g · kernel]       every window of the spread and padded input

Einsum: a letter that w shares with x and the result numbers the groups, one that only w has numbers the outputs, one
that w shares with x alone is summed. ConvTranspose is the convolution of its input, spread by the strides with zeros
between, with the reversed kernel. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rounding.windows import windows_of

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EinsumView:
    """The view of an operand of Einsum.

    Parameters
    ----------
    weight_letters, other_letters, result_letters : str
    """

    weight_letters: str
    other_letters: str
    result_letters: str

    @property
    def _parts(self) -> tuple[str, str, str]:
        """Letters of the groups, the outputs and the inputs."""
        w, x, y = self.weight_letters, self.other_letters, self.result_letters
        return (
            "".join(c for c in w if c in x and c in y),
            "".join(c for c in w if c not in x),
            "".join(c for c in w if c in x and c not in y),
        )

    def _order(self) -> list[int]:
        return [self.weight_letters.index(c) for c in "".join(self._parts)]

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]."""
        sizes = dict(zip(self.weight_letters, weight.shape, strict=True))
        shape = [int(np.prod([sizes[c] for c in part], dtype=np.int64)) for part in self._parts]
        return weight.transpose(self._order()).reshape(shape)

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        order = self._order()
        moved = matrices.reshape([shape[i] for i in order])
        return np.ascontiguousarray(moved.transpose(np.argsort(order)))

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return [group, n, in]."""
        groups, _, inner = self._parts
        x = activation.astype(np.float64)
        lost = [
            i for i, c in enumerate(self.other_letters) if c not in self.result_letters and c not in inner
        ]
        letters = "".join(c for i, c in enumerate(self.other_letters) if i not in lost)
        x = x.sum(axis=tuple(lost))
        own = "".join(c for c in letters if c not in groups and c not in inner)
        sizes = dict(zip(letters, x.shape, strict=True))
        shapes = [int(np.prod([sizes[c] for c in part], dtype=np.int64)) for part in (groups, own, inner)]
        rows: Matrix = x.transpose([letters.index(c) for c in groups + own + inner]).reshape(shapes)
        return rows


def einsum_view(equation: str, index: int, shape: tuple[int, ...]) -> EinsumView | None:
    """Return the view of operand `index` of an equation of two operands; None if it is not such a product."""
    text = equation.replace(" ", "")
    operands, arrow, result = text.partition("->")
    terms = operands.split(",")
    if len(terms) != 2 or not arrow or "." in text or any(len(set(t)) < len(t) for t in (*terms, result)):
        return None
    w, x = terms[index], terms[1 - index]
    if len(w) != len(shape) or any(c not in x and c not in result for c in w):
        return None
    view = EinsumView(w, x, result)
    return view if any(c in x and c not in result for c in w) else None


@dataclass(frozen=True, slots=True)
class TransposedConvView:
    """The view of a weight of ConvTranspose.

    Parameters
    ----------
    groups : int
    strides, dilations, pads, output_padding : tuple of int
        Per spatial axis; `pads` in ONNX order: all begins, then all ends. Empty: the operator's defaults.
    """

    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()

    def matrices(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return [group, out, in]."""
        reverse = (slice(None), slice(None), *(slice(None, None, -1) for _ in weight.shape[2:]))
        split = weight[reverse].reshape(self.groups, -1, *weight.shape[1:])
        moved = np.swapaxes(split, 1, 2)
        return np.ascontiguousarray(moved).reshape(self.groups, weight.shape[1], -1)

    def weight(self, matrices: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the weight."""
        split = matrices.reshape(self.groups, shape[1], shape[0] // self.groups, *shape[2:])
        joined = np.swapaxes(split, 1, 2).reshape(shape)
        reverse = (slice(None), slice(None), *(slice(None, None, -1) for _ in shape[2:]))
        return np.ascontiguousarray(joined[reverse])

    def rows(self, activation: NDArray[Any], shape: tuple[int, ...], *also: NDArray[Any] | None) -> Matrix:
        """Return [group, windows, channels · kernel]."""
        rank = len(shape) - 2
        ones, zeros = (1,) * rank, (0,) * rank
        strides, dilations = self.strides or ones, self.dilations or ones
        pads, more = self.pads or zeros + zeros, self.output_padding or zeros
        spread = np.zeros(
            (
                *activation.shape[:2],
                *((n - 1) * s + 1 for n, s in zip(activation.shape[2:], strides, strict=True)),
            ),
            activation.dtype,
        )
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = activation
        reach = [d * (k - 1) for d, k in zip(dilations, shape[2:], strict=True)]
        margins = [(r - pads[i], r - pads[rank + i] + more[i]) for i, r in enumerate(reach)]
        return windows_of(spread, shape[2:], ones, dilations, margins, self.groups)
