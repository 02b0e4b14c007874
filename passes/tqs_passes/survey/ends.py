"""Read from the graph what an output is made by, and which inputs are the initial states of recurrent nodes.

An output that a Sigmoid or Softmax makes is a probability, a mask or a class, and not the next value of an input. An
input that LSTM, GRU or RNN takes as `initial_h` or `initial_c` is a state.
"""

from __future__ import annotations

from tqs_passes.graph.scope import Site, Value, Wiring

#: Operators that keep the values and change their order or shape.
_MOVERS = frozenset(
    {
        *(
            "Identity",
            "Cast",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Transpose",
            "Flatten",
            "Slice",
            "Gather",
            "Concat",
        ),
        *("Expand", "Pad", "Split"),
    }
)
#: Operators whose result is a probability, its logarithm, or an index.
_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin"})
#: Inputs of the recurrent operators that are initial states.
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_MOST_HOPS = 32


def made_by(wiring: Wiring) -> dict[str, str]:
    """Return, for each graph output that an operator makes a probability or an index, that operator.

    Nodes that only move values are passed; the branches of an If must agree.
    """
    makers = {(site.scope, name): site for site in wiring.sites for name in site.node.output if name}
    graph = wiring.graphs[0]
    found = {output.name: _makers((0, output.name), makers, wiring, _MOST_HOPS) for output in graph.output}
    return {name: min(ops) for name, ops in found.items() if ops and ops <= _BOUNDED}


def _makers(value: Value, makers: dict[Value, Site], wiring: Wiring, hops: int) -> frozenset[str]:
    site = makers.get(value)
    if site is None or hops == 0:
        return frozenset({""})
    if site.op == "If":
        position = list(site.node.output).index(value[1])
        ends: frozenset[str] = frozenset()
        for scope, graph in enumerate(wiring.graphs):
            holder = wiring.holders[scope]
            if holder is not None and wiring.sites[holder] is site:
                inner = (scope, graph.output[position].name)
                ends |= _makers(inner, makers, wiring, hops - 1)
        return ends
    if site.op in _MOVERS:
        read = site.inputs if site.op == "Concat" else site.inputs[:1]
        sets = [_makers(v, makers, wiring, hops - 1) for v in read if v is not None]
        return frozenset().union(*sets)
    return frozenset({site.op})


def initial_states(wiring: Wiring) -> frozenset[str]:
    """Return the names of the graph inputs that are initial states of LSTM, GRU or RNN nodes, maybe moved or cut."""
    stored = {tensor.name for tensor in wiring.graphs[0].initializer}
    fed = [value.name for value in wiring.graphs[0].input if value.name not in stored]
    return frozenset(name for name in fed if _reaches_state((0, name), wiring))


def _reaches_state(value: Value, wiring: Wiring) -> bool:
    front, seen = [value], {value}
    while front:
        for index, position in wiring.consumers.get(front.pop(), ()):
            site = wiring.sites[index]
            if position in _STATES.get(site.op, ()):
                return True
            if site.op in _MOVERS and (position == 0 or site.op == "Concat"):
                reached = {(site.scope, name) for name in site.node.output if name} - seen
                seen |= reached
                front += reached
    return False
