"""Find attention in a graph: which nodes lie inside it, and which products project into and out of it.

The pattern, in which elementwise nodes and nodes that only move values may stand anywhere in between::

    query ─projection─▶ ╲
    key   ─projection─▶ MatMul ─▶ (+ bias table, + mask) ─▶ Softmax ─▶ MatMul ─▶ ─projection─▶
    value ─projection─────────────────────────────────────────────────▶╱

A fused operator (`Attention`, `MultiHeadAttention`, …) counts as the middle of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tqs_passes.graph.flow import SHAPE_ONLY, Flow
from tqs_passes.graph.scope import Value, Wiring

PRODUCTS = frozenset(
    {
        "MatMul",
        "Gemm",
        "Einsum",
        "Conv",
        "ConvTranspose",
        "com.microsoft.FusedMatMul",
        "com.microsoft.FusedGemm",
    }
)
_FUSED = frozenset(
    {
        "Attention",
        "com.microsoft.Attention",
        "com.microsoft.MultiHeadAttention",
        "com.microsoft.GroupQueryAttention",
        "com.microsoft.PackedAttention",
        "com.microsoft.PackedMultiHeadAttention",
        "com.microsoft.DecoderMaskedMultiHeadAttention",
    }
)
_SUMS = frozenset({"Add", "Sub", "Sum"})
#: The search stops here: behind a Softmax lies another product, and a shape carries no values.
_WALLS = SHAPE_ONLY | {"Softmax"}


def makers(wiring: Wiring) -> dict[Value, int]:
    """Return the index of the node that produces each value."""
    return {
        (site.scope, name): index
        for index, site in enumerate(wiring.sites)
        for name in site.node.output
        if name
    }


class Attention:
    """The attention of one model, as node numbers (`Wiring.sites`).

    Parameters
    ----------
    wiring : Wiring
    flow : Flow
        Of the same model.
    """

    def __init__(self, wiring: Wiring, flow: Flow) -> None:
        self._wiring = wiring
        self._flow = flow
        self._maker = makers(wiring)
        #: Nodes between the projections: the products of activations and everything between them.
        self.inside: set[int] = set()
        #: Products with a weight that produce query, key or value, or that read the result of attention.
        self.projections: set[int] = set()
        #: The products that produce the result of attention.
        self.ends: set[int] = set()
        for index, site in enumerate(wiring.sites):
            if site.op in _FUSED:
                self._note([index], index)
            elif site.op == "Softmax":
                self._around(index)

    def _around(self, softmax: int) -> None:
        site = self._wiring.sites[softmax]
        behind, values = self._forward(softmax, self._is_product, stop=self._is_join)
        before, scores = self._backward([v for v in site.inputs if v is not None], self._is_product)
        if not scores or not any(self._of_activations(i) for i in values):
            return
        taken = [i for i in values if self._of_activations(i)]
        self.inside |= {softmax, *behind, *before, *scores}
        for end in taken:
            self._note(scores, end)

    def _note(self, scores: Iterable[int], end: int) -> None:
        self.ends.add(end)
        self.inside.add(end)
        for index in {*scores, end}:
            fed = [v for v in self._wiring.sites[index].inputs if v is not None]
            passed, made = self._backward(fed, self._is_weighted)
            self.projections |= made
            self.inside |= passed if made else set()
        passed, following = self._forward(end, self._is_weighted, stop=self._is_join)
        self.projections |= following
        self.inside |= passed if following else set()

    def _of_activations(self, index: int) -> bool:
        site = self._wiring.sites[index]
        return sum(v is not None and v in self._flow.dynamic for v in site.inputs) >= 2

    def _is_product(self, index: int) -> bool:
        return self._wiring.sites[index].op in PRODUCTS

    def _is_weighted(self, index: int) -> bool:
        """Return whether a node multiplies by a stored value, or by one computed from stored values alone."""
        site = self._wiring.sites[index]
        if site.op not in PRODUCTS:
            return False
        return any(v is not None and v not in self._flow.dynamic for v in site.inputs[:2])

    def _is_join(self, index: int) -> bool:
        """Return whether a node adds two activations; a residual branch ends there."""
        return self._wiring.sites[index].op in _SUMS and self._of_activations(index)

    def _backward(self, values: Iterable[Value], end: Callable[[int], bool]) -> tuple[set[int], set[int]]:
        """Search upstream from `values`: return the nodes passed and the first nodes for which `end` holds."""
        passed: set[int] = set()
        found: set[int] = set()
        waiting = [self._maker[v] for v in values if v in self._maker]
        while waiting:
            index = waiting.pop()
            if index in passed or index in found:
                continue
            if end(index):
                found.add(index)
                continue
            if self._wiring.sites[index].op in _WALLS:
                continue
            passed.add(index)
            waiting += [
                self._maker[v] for v in self._wiring.sites[index].inputs if v is not None and v in self._maker
            ]
        return passed, found

    def _forward(
        self, start: int, end: Callable[[int], bool], *, stop: Callable[[int], bool]
    ) -> tuple[set[int], set[int]]:
        """Search downstream from a node: return the nodes passed and the first nodes for which `end` holds."""
        passed: set[int] = set()
        found: set[int] = set()
        waiting = self._readers(start)
        while waiting:
            index = waiting.pop()
            if index in passed or index in found:
                continue
            if end(index):
                found.add(index)
            elif self._wiring.sites[index].op not in SHAPE_ONLY and not stop(index):
                passed.add(index)
                waiting += self._readers(index)
        return passed, found

    def _readers(self, index: int) -> list[int]:
        site = self._wiring.sites[index]
        return [
            reader
            for name in site.node.output
            for reader, _ in self._wiring.consumers.get((site.scope, name), ())
        ]
