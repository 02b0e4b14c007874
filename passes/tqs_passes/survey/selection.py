"""Find weights of which a model uses only what its inputs select: branches, table rows, and what a gate weighs.

    branch    flag (fed) ─▶ If { MatMul(x, W) }, Where(flag, ·, MatMul(x, W))      W has no effect while flag is false
    table     idx (fed) ─▶ Gather(E, idx)                          rows of E that no index names are never used
    gate      x ─▶ TopK ─▶ … ─▶ g;   MatMul(x, W) ─▶ Mul(g) ─▶ …     W has no effect while its gate is 0

What a calibration never selects has an error that nothing measured; only running the model tells what it selects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tqs_passes.files.model import Model
from tqs_passes.graph.flow import SHAPE_ONLY, Flow
from tqs_passes.graph.scope import wire
from tqs_passes.graph.trace import Reading, Tracer
from tqs_passes.weights import Weight

_GATHERS = frozenset({"Gather", "GatherND", "GatherElements"})
#: Nodes between a table and its Gather that leave rows in their place.
_KEEPS_ROWS = frozenset({"Identity", "Cast", "CastLike", "Transpose", "Squeeze", "Unsqueeze"})
#: Operators that turn data into a choice.
_CHOOSING = frozenset(
    {
        *(
            "TopK",
            "ArgMax",
            "ArgMin",
            "Hardmax",
            "OneHot",
            "NonZero",
            "Where",
            "ScatterElements",
            "ScatterND",
        ),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    }
)
_PRODUCTS = frozenset({"Mul", "MatMul", "Einsum"})
#: The inputs with which an operator selects among its other inputs.
_SELECTS = {
    "Where": (0,),
    "Compress": (1,),
    "Gather": (1,),
    "GatherND": (1,),
    "GatherElements": (1,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
}


@dataclass(frozen=True, slots=True)
class TableRead:
    """One Gather of a table.

    Parameters
    ----------
    index : str
        Tensor of the main graph that holds the indices; empty if its rows cannot be followed.
    axis : int
        Axis of the table along which it is indexed.
    why_not : str
        Why its rows cannot be followed; empty if they can.
    """

    index: str = ""
    axis: int = 0
    why_not: str = ""


def is_table(weight: Weight) -> bool:
    """Return whether every reader of a weight picks parts of it by fed indices."""
    readers = [r for r in weight.readers if r.op_type not in SHAPE_ONLY]
    return bool(readers) and all(
        r.op_type in _GATHERS and r.domain in ("", "ai.onnx") and r.input_index == 0 for r in readers
    )


def table_reads(model: Model, weights: Iterable[Weight]) -> dict[str, tuple[TableRead, ...]]:
    """Return how each table among the weights of a lifted model is read."""
    tables = [w for w in weights if is_table(w)]
    if not tables:
        return {}
    wiring = wire(model.proto.graph)
    tracer = Tracer(model, wiring, Flow(wiring))
    return {
        w.name: tuple(
            _read(reading)
            for reading in tracer.readings((0, w.name), w.shape)
            if reading.reader.op_type not in SHAPE_ONLY
        )
        for w in tables
    }


def _read(reading: Reading) -> TableRead:
    reader, site = reading.reader, reading.site
    index = site.inputs[1] if len(site.inputs) > 1 else None
    if reader.op_type != "Gather":
        return TableRead(why_not=f"the rows that {reader.op_type} reads are not followed")
    if reader.in_body or index is None or index[0] != 0:
        return TableRead(why_not="the rows that are read inside a body are not followed")
    if reader.channel_axis is None or not _KEEPS_ROWS.issuperset(reader.through):
        return TableRead(why_not=f"the rows that are read behind {'→'.join(reader.through)} are not followed")
    return TableRead(index[1], reader.channel_axis)


def selectable(model: Model, weights: Iterable[Weight]) -> frozenset[str]:
    """Return the names of the weights that lie in a body, or before an operator that selects by fed values."""
    chosen = list(weights)
    if not chosen:
        return frozenset()
    found = {w.name for w in chosen if any(r.in_body for r in w.readers)}
    wiring = wire(model.proto.graph)
    flow = Flow(wiring)
    selecting = {
        i
        for i, site in enumerate(wiring.sites)
        if any(site.inputs[at] in flow.dynamic for at in _SELECTS.get(site.op, ()) if at < len(site.inputs))
    }
    for w in chosen:
        if w.name not in found:
            starts = [site for site, _ in wiring.consumers.get((0, w.name), ())]
            if not selecting.isdisjoint(starts) or selecting & flow.around(starts)[1]:
                found.add(w.name)
    return frozenset(found)


def gated(model: Model, weights: Iterable[Weight]) -> frozenset[str]:
    """Return the names of the weights whose effect is multiplied by a value that a choice of the model made."""
    chosen = [w.name for w in weights]
    if not chosen:
        return frozenset()
    wiring = wire(model.proto.graph)
    flow = Flow(wiring)
    choosing = [i for i, site in enumerate(wiring.sites) if site.op in _CHOOSING]
    picked = flow.around(choosing)[1] & flow.dynamic
    found: set[str] = set()
    for name in chosen:
        starts = [site for site, _ in wiring.consumers.get((0, name), ())]
        behind = flow.around(starts)[1]
        for site in behind:
            if not isinstance(site, int) or wiring.sites[site].op not in _PRODUCTS:
                continue
            values = [v for v in wiring.sites[site].inputs if v is not None]
            if any(v in behind for v in values) and any(v in picked and v not in behind for v in values):
                found.add(name)
                break
    return frozenset(found)
