"""Gives names to tensors of a model that it computes but does not name in its main graph, so that they can be captured.

Before → after ::

    LSTM ─▶ "", Y_h                          LSTM ─▶ tqs_states.4, Y_h              node 4: all states h_t
    Scan(body: x ─▶ MatMul ─▶ …) ─▶ y        Scan(…) ─▶ y, tqs_turns.7.x            node 7: x of every turn, stacked

Both operators compute what they computed before. The names say what they stand for, so they need no table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx

from tqs_passes.files.model import Model
from tqs_passes.graph.scope import bodies, defined_names
from tqs_passes.graph_pass import PassResult, Skip

_STATES, _TURNS = "tqs_states", "tqs_turns"


def revealed_states(position: int) -> str:
    """Return the name that the states of the recurrent node at this position of the main graph get."""
    return f"{_STATES}.{position}"


def revealed_in_body(position: int, name: str) -> str:
    """Return the name of a tensor in the body of the Loop or Scan at this position, stacked over all turns."""
    return f"{_TURNS}.{position}.{name}"


@dataclass(frozen=True, slots=True)
class Reveal:
    """The pass (see the module docstring).

    Parameters
    ----------
    tensors : tuple of str
        Names to make; others, and those that exist, are ignored.
    """

    tensors: tuple[str, ...]

    name: ClassVar[str] = "reveal"

    def apply(self, model: Model) -> PassResult:
        """Return the model in which these tensors have names; `changed` lists them."""
        wanted = [name for name in self.tensors if name.partition(".")[0] in (_STATES, _TURNS)]
        there = defined_names(model.proto.graph)
        wanted = [name for name in wanted if name not in there]
        if not wanted:
            return PassResult(model)
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        changed: list[str] = []
        skipped: list[Skip] = []
        for name in wanted:
            kind, place, *inner = name.split(".", 2)
            node = proto.graph.node[int(place)]
            made = _name_states(node, name) if kind == _STATES else _return(node, inner[0], name)
            if made:
                changed.append(name)
            else:
                skipped.append(Skip(name, "no such tensor"))
        return PassResult(replace(model, proto=proto), tuple(changed), tuple(skipped))


def _name_states(node: onnx.NodeProto, name: str) -> bool:
    if node.op_type not in ("LSTM", "GRU", "RNN"):
        return False
    if node.output:
        node.output[0] = name
    else:
        node.output.append(name)
    return True


def _return(node: onnx.NodeProto, inner: str, name: str) -> bool:
    """Let a Loop or Scan return an inner tensor of every turn."""
    body = next((body for _, body in bodies(node)), None)
    if node.op_type not in ("Loop", "Scan") or body is None or inner not in defined_names(body):
        return False
    body.node.add(op_type="Identity", input=[inner], output=[name])
    body.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    node.output.append(name)
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)
    return True
