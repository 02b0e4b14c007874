"""Find residual branches: the nodes between x and f(x) where a node adds the two and f contains a product.

    x ──────────────────────▶ Add          norms may stand before or after the product; x may be moved
    ╰─▶ norm ─▶ product … ──▶ ╯            (Reshape, Slice, …) or be a sum itself (x + a(x) + f(x))

A bypass that has passed no product is a raw input. The branch beside it would be the whole network, so it does not
count.
"""

from __future__ import annotations

from tqs_passes.graph.attention import makers
from tqs_passes.graph.axes import MOVERS
from tqs_passes.graph.flow import SHAPE_ONLY, Flow
from tqs_passes.graph.scope import Value, Wiring

_SUMS = frozenset({"Add", "Sum"})
_MOST_ROOTS = 32


def branches(wiring: Wiring, flow: Flow, products: set[int]) -> dict[int, set[int]]:
    """Map each node inside a residual branch to the nodes at which its branches end, by site number.

    Parameters
    ----------
    wiring : Wiring
    flow : Flow
        Of the same model.
    products : set of int
        Nodes that multiply by a weight.
    """
    maker = makers(wiring)
    embedded = _embedded(wiring, maker, products)
    found: dict[int, set[int]] = {}
    for end, site in enumerate(wiring.sites):
        fed = [v for v in site.inputs if v is not None and v in flow.data_dynamic]
        if site.op not in _SUMS or len(fed) < 2:
            continue
        for bypass in fed:
            roots = {v for v in _roots(bypass, wiring, maker) if v in embedded}
            for other in fed:
                if other != bypass:
                    for index in _between(other, roots, wiring, maker, products):
                        found.setdefault(index, set()).add(end)
    return found


def _embedded(wiring: Wiring, maker: dict[Value, int], products: set[int]) -> set[Value]:
    """Return the values downstream of a product."""
    found: set[Value] = set()
    for index, site in enumerate(wiring.sites):
        if index in products or any(v in found for v in site.inputs if v is not None):
            found.update((site.scope, name) for name in site.node.output if name)
    return found


def _roots(value: Value, wiring: Wiring, maker: dict[Value, int]) -> set[Value]:
    """Return a value and the values from which it was moved or added."""
    found: set[Value] = set()
    waiting = [value]
    while waiting and len(found) < _MOST_ROOTS:
        at = waiting.pop(0)
        if at in found:
            continue
        found.add(at)
        index = maker.get(at)
        if index is None:
            continue
        site = wiring.sites[index]
        taken = site.inputs if site.op in _SUMS else site.inputs[:1] if site.op in MOVERS else ()
        waiting += [v for v in taken if v is not None]
    return found


def _between(
    value: Value, roots: set[Value], wiring: Wiring, maker: dict[Value, int], products: set[int]
) -> set[int]:
    """Return the nodes on the paths from `roots` to a value; an empty set when no product lies on them."""
    first = min((maker[v] for v in roots if v in maker), default=None)
    if first is None or value in roots:
        return set()
    above: dict[int, bool] = {}
    order: list[int] = []
    waiting = [maker[value]] if value in maker else []
    seen: set[int] = set(waiting)
    while waiting:
        index = waiting.pop()
        if wiring.sites[index].op in SHAPE_ONLY:
            continue
        order.append(index)
        for v in wiring.sites[index].inputs:
            i = maker.get(v) if v is not None else None
            if i is not None and v not in roots and i > first and i not in seen:
                seen.add(i)
                waiting.append(i)
    for index in sorted(order):
        inputs = [v for v in wiring.sites[index].inputs if v is not None]
        above[index] = any(v in roots or above.get(maker.get(v, -1), False) for v in inputs)
    lying = {i for i, reached in above.items() if reached}
    return lying if lying & products else set()
