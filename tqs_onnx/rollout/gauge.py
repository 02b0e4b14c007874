"""Sum squared differences of two rollouts on the device that computed them; only the sums are copied to the host.

    a, b   output of one step, of either rollout
    out    Σ (a − b)²      float64, summed over all axes except batch, time, and those that variables select

Axes that `trajectory.select` cuts are not summed either; summed axes have length 1. float16 and bfloat16 are widened to
float32 first, which is exact; a float32 difference is rounded once, by at most 2⁻²⁴ of itself. ONNX operators Cast,
Sub, ReduceSumSquare, Mul (opset 17).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tqs_onnx.rollout.options import Provider, SessionOptions
from tqs_onnx.rollout.session import Session, Value, open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec

_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, slots=True, eq=False)
class Gauge:
    """Compares outputs of one step; created by `gauge_for`.

    Parameters
    ----------
    outputs : tuple of str
        Trajectory outputs.
    session : Session
        Its inputs are ``a0, b0, a1, b1, …`` and its outputs ``s0, s1, …``, numbered by position in `outputs`.
    """

    outputs: tuple[str, ...]
    session: Session

    def squares(self, a: Mapping[str, Value], b: Mapping[str, Value], *, where: str = "") -> dict[str, Value]:
        """Return Σ (a − b)² for each trajectory output, float64, with the output's rank (see module docstring)."""
        feeds: dict[str, Value] = {}
        for i, name in enumerate(self.outputs):
            feeds[f"a{i}"], feeds[f"b{i}"] = a[name], b[name]
        made = self.session.run(feeds, where=where)
        return {name: made[f"s{i}"] for i, name in enumerate(self.outputs)}


@dataclass(frozen=True, slots=True, eq=False)
class Squares:
    """Squared differences of one rollout from another.

    Parameters
    ----------
    outputs : dict of str to float64 array
        Maps a trajectory output to ``[context, time, *rest]``, laid out like a trajectory. Axes of `rest` that do not
        distinguish variables may be summed; they then have length 1.
    time_after : tuple of int
        See `Trajectory`; shorter than in the other rollout when this one was stopped early.
    """

    outputs: dict[str, NDArray[np.float64]]
    time_after: tuple[int, ...]


def gauge_for(
    outputs: Mapping[str, Value], spec: RolloutSpec, *, has_columns: bool, provider: Provider, device: int = 0
) -> Gauge:
    """Return the gauge for outputs of these ranks and dtypes.

    Parameters
    ----------
    outputs : mapping of str to Value
        Maps a trajectory output to its values at any step.
    spec : RolloutSpec
    has_columns : bool
        Whether the last axis of a trajectory may be the columns of a table (`variables.by_variable`).
    provider : str
    device : int
    """
    nodes: list[onnx.NodeProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    results: list[onnx.ValueInfoProto] = []
    for i, (name, value) in enumerate(outputs.items()):
        rank = len(value.shape)
        for side in "ab":
            inputs.append(_info(f"{side}{i}", int(helper.np_dtype_to_tensor_dtype(value.dtype)), rank))
        summed = sorted(set(range(rank)) - _kept_axes(name, rank, spec, has_columns=has_columns))
        nodes += _nodes(i, summed, wide=value.dtype == np.float64)
        results.append(_info(f"s{i}", TensorProto.DOUBLE, rank))
    graph = helper.make_graph(nodes, "gauge", inputs, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    session = open_session(
        model.SerializeToString(),
        # TensorRT would build an engine for every shape.
        provider="cuda" if provider == "tensorrt" else provider,
        # One thread: a second thread pool would compete with the model's. A memory pattern would double the memory.
        options=SessionOptions(threads=1, memory_pattern=False, device=device),
    )
    return Gauge(tuple(outputs), session)


def _info(name: str, kind: int, rank: int) -> onnx.ValueInfoProto:
    """Declare the rank only: sizes may change from step to step."""
    return helper.make_tensor_value_info(name, kind, [None] * rank)


def _nodes(i: int, summed: list[int], *, wide: bool) -> list[onnx.NodeProto]:
    kind = TensorProto.DOUBLE if wide else TensorProto.FLOAT
    nodes = [helper.make_node("Cast", [f"{side}{i}"], [f"{side}{i}_wide"], to=kind) for side in "ab"]
    nodes.append(helper.make_node("Sub", [f"a{i}_wide", f"b{i}_wide"], [f"d{i}"]))
    nodes.append(helper.make_node("Cast", [f"d{i}"], [f"d{i}_double"], to=TensorProto.DOUBLE))
    if summed:
        nodes.append(
            helper.make_node("ReduceSumSquare", [f"d{i}_double"], [f"s{i}"], axes=summed, keepdims=1)
        )
    else:
        nodes.append(helper.make_node("Mul", [f"d{i}_double"] * 2, [f"s{i}"]))
    return nodes


def _kept_axes(output: str, rank: int, spec: RolloutSpec, *, has_columns: bool) -> set[int]:
    """Return the axes of an ONNX output over which no sum is taken."""
    moved = {a for a in (spec.rollout.batch_axis, spec.trajectory.time_axis) if a is not None}
    kept = moved | {c.axis for c in spec.trajectory.select}
    kept |= {v.axis for v in spec.variable if v.output == output and v.axis is not None}
    dropped = {c.axis for c in spec.trajectory.select if c.index is not None}
    rest = [a for a in range(rank) if a not in moved | dropped]
    if has_columns and rest:
        kept.add(rest[-1])
    return kept
