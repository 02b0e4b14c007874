"""Sort weights into the role buckets of the paper (A.8), using the graph alone.

=========  =============================================================================================================
io.input   products between the model's inputs and its first attention (without attention: the first product)
io.output  products after the last attention and outside any residual branch (without attention: the last product)
body.attn  projections into and out of attention, and everything between: bias tables, scales of queries and keys
body.ffn   other products inside a residual branch ``x + f(x)``; in a model without attention all inner dense ones
body.other the rest: norms, down- and upsampling, modulators of norms, convolutions between
=========  =============================================================================================================

A bias has the role of the product it is added to. A deep stem or head is part of the body from its fourth product on.
A residual branch whose bypass is a raw input (``state + change``) does not count: the whole network lies inside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from tqs_passes.errors import InputError
from tqs_passes.graph.attention import PRODUCTS, Attention, makers
from tqs_passes.graph.axes import MOVERS
from tqs_passes.graph.flow import Flow
from tqs_passes.graph.residual import branches
from tqs_passes.graph.scope import Wiring
from tqs_passes.graph.trace import Reading
from tqs_passes.weights import Role, Survey

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_DENSE = frozenset({"MatMul", "Gemm", "com.microsoft.FusedMatMul", "com.microsoft.FusedGemm"})
_NORMS = frozenset(
    {
        "LayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "BatchNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "com.microsoft.SkipLayerNormalization",
    }
)
_MOST_DEEP = 3
_MOST_HOPS = 16


class Roles:
    """Finds the roles of the weights of one model.

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
        self._attention = Attention(wiring, flow)
        self._weighted = {i for i in range(len(wiring.sites)) if self._multiplies(i)}
        self._branches = branches(wiring, flow, self._weighted)
        self._depth = self._depths()
        self._height = self._heights()
        before, after = flow.around(self._attention.ends)
        self._before: frozenset[Hashable] = before
        self._after: frozenset[Hashable] = after

    def of(self, readings: Sequence[Reading]) -> Role:
        """Return the role of a weight: attention if any reader lies there, else the role of its first reader."""
        sites = [self._number(r) for r in readings]
        found = [self._at(i, norm=self._wiring.sites[i].op in _NORMS) for i in sites]
        if Role.ATTENTION in found:
            return Role.ATTENTION
        return found[0] if found else Role.OTHER

    def _number(self, reading: Reading) -> int:
        site = reading.site
        return next(
            (
                self._maker[site.scope, name]
                for name in site.node.output
                if name and (site.scope, name) in self._maker
            ),
            -1,
        )

    def _at(self, index: int, *, norm: bool = False) -> Role:
        if index < 0:
            return Role.OTHER
        if index in self._attention.inside or index in self._attention.projections:
            return Role.ATTENTION
        if index not in self._weighted and not norm:
            product = self._product_behind(index)
            if product is not None:
                return self._at(product)
        return self._of_body(index, is_product=index in self._weighted)

    def _of_body(self, index: int, *, is_product: bool) -> Role:
        static = not any(
            (self._wiring.sites[index].scope, n) in self._flow.data_dynamic
            for n in self._wiring.sites[index].node.output
        )
        if static:
            index = self._joins_at(index)
            is_product = False
        in_branch = index in self._branches
        if not is_product and in_branch:
            return Role.OTHER
        if not self._attention.ends:
            return self._without_attention(index, is_product=is_product, in_branch=in_branch)
        beside = any(end in self._after for end in self._branches.get(index, ()))
        if index not in self._after and not beside and self._depth.get(index, 0) <= _MOST_DEEP:
            return Role.INPUT
        if index not in self._before and not in_branch and self._height.get(index, 0) <= _MOST_DEEP:
            return Role.OUTPUT if is_product else Role.OTHER
        return Role.FEED_FORWARD if in_branch and is_product else Role.OTHER

    def _without_attention(self, index: int, *, is_product: bool, in_branch: bool) -> Role:
        first = self._depth.get(index, 0) <= 1
        last = self._height.get(index, 0) <= 1
        if is_product and last and not in_branch:
            return Role.OUTPUT
        if first and not in_branch:
            return Role.INPUT
        dense = self._wiring.sites[index].op in _DENSE
        return Role.FEED_FORWARD if is_product and dense else Role.OTHER

    def _multiplies(self, index: int) -> bool:
        """Return whether a node multiplies a fed value by a stored one, or looks up stored rows by fed indices."""
        site = self._wiring.sites[index]
        if site.op in _RECURRENT:
            return True
        known = [v is not None and v not in self._flow.dynamic for v in site.inputs[:2]]
        if site.op in PRODUCTS:
            return any(known)
        return site.op == "Gather" and len(known) == 2 and known[0] and not known[1]

    def _product_behind(self, index: int) -> int | None:
        """Return the product to whose result a node adds a bias; None when it adds to something else."""
        site = self._wiring.sites[index]
        if site.op not in ("Add", "Sub", "Sum"):
            return None
        waiting = [v for v in site.inputs if v is not None and v in self._maker]
        for _ in range(_MOST_HOPS):
            made = [self._maker[v] for v in waiting]
            product = next((i for i in made if i in self._weighted), None)
            if product is not None:
                return product
            movers = [i for i in made if self._wiring.sites[i].op in MOVERS]
            if not movers:
                return None
            taken = [self._wiring.sites[i].inputs[0] for i in movers]
            waiting = [v for v in taken if v is not None and v in self._maker]
        return None

    def _joins_at(self, index: int) -> int:
        """Return the first node at which a value computed from constants alone meets a fed value."""
        waiting, seen = [index], {index}
        while waiting:
            at = waiting.pop(0)
            site = self._wiring.sites[at]
            outputs = [(site.scope, name) for name in site.node.output if name]
            if any(v in self._flow.data_dynamic for v in outputs):
                return at
            for reader in (r for v in outputs for r, _ in self._wiring.consumers.get(v, ())):
                if reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
        return index

    def _depths(self) -> dict[int, int]:
        """Map each node to the most products on any path from an input to it, itself included."""
        depth: dict[int, int] = {}
        for index, site in enumerate(self._wiring.sites):
            above = [depth.get(self._maker.get(v, -1), 0) for v in site.inputs if v is not None]
            depth[index] = max(above, default=0) + (index in self._weighted)
        return depth

    def _heights(self) -> dict[int, int]:
        """Map each node to the most products on any path from it to an output, itself included."""
        height: dict[int, int] = {}
        for index in range(len(self._wiring.sites) - 1, -1, -1):
            site = self._wiring.sites[index]
            readers = [
                reader
                for name in site.node.output
                for reader, _ in self._wiring.consumers.get((site.scope, name), ())
            ]
            height[index] = max((height.get(r, 0) for r in readers), default=0) + (index in self._weighted)
        return height


def with_roles(survey: Survey, patterns: Sequence[tuple[str, Role]]) -> Survey:
    """Return a survey in which each weight has the role of the last pattern that matches it.

    Parameters
    ----------
    survey : Survey
    patterns : sequence of (str, Role)
        Shell patterns and roles; a pattern is matched against labels and names.

    Raises
    ------
    InputError
        A pattern matches no weight.
    """
    roles: dict[str, Role] = {}
    for pattern, role in patterns:
        hit = [w.name for w in survey.weights if w.matches(pattern)]
        if not hit:
            raise InputError(
                f"the pattern {pattern!r} matches no weight",
                where="`role`",
                todo="Use labels as tqs inspect shows them, e.g. 'encoder.*=io.input'",
            )
        roles.update(dict.fromkeys(hit, role))
    weights = tuple(replace(w, role=roles.get(w.name, w.role)) for w in survey.weights)
    return Survey(weights, survey.excluded)
