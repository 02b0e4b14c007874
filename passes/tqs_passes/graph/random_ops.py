"""List operators that draw random numbers: two rollouts through such an operator cannot be compared."""

from __future__ import annotations

import onnx

from tqs_passes.files.tensors import iter_nodes

#: Operators of ONNX that draw random numbers.
RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def random_operators(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return ``operator 'node name'`` of each node in the graph, its bodies and functions that draws random numbers."""
    return tuple(
        f"{n.op_type} {n.name!r}"
        for n in iter_nodes(proto)
        if n.op_type in RANDOM and n.domain in ("", "ai.onnx")
    )
