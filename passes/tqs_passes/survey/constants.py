"""Separate stored constants from weights: arguments, masks, position encodings, scales of quantised tensors.

Only certain cases are excluded; a float tensor without a matching rule counts as a weight. A constant that is
treated as a weight costs a little time; a weight that is treated as a constant is lost to all later stages.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tqs_passes.graph import content
from tqs_passes.graph.axes import MOVERS
from tqs_passes.graph.flow import Flow
from tqs_passes.graph.scope import Site, Value, Wiring
from tqs_passes.graph.trace import Reading, StoredTensor
from tqs_passes.survey.data_constants import DataConstants
from tqs_passes.survey.naming import is_anonymous

#: Inputs that hold scales or zero points, by operator.
_SCALES: dict[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "com.microsoft.QuantizeLinear": frozenset({1, 2}),
    "com.microsoft.DequantizeLinear": frozenset({1, 2}),
    "com.microsoft.MatMulNBits": frozenset({2, 3}),
    "com.microsoft.GatherBlockQuantized": frozenset({2, 3}),
    "com.microsoft.DynamicQuantizeMatMul": frozenset({2, 3}),
    "com.microsoft.MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "com.microsoft.QAttention": frozenset({3, 4}),
    "com.microsoft.DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
}
_BYTES = frozenset(
    {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
)
_INTEGERS = _BYTES | {onnx.TensorProto.INT32, onnx.TensorProto.INT64}
_ALL = frozenset(range(16))
#: Inputs that are arguments (a shape, an axis, a bound), by operator: they control the operator and are not data.
_ARGUMENTS: dict[str, frozenset[int]] = {
    "AffineGrid": frozenset({1}),
    "CenterCropPad": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "ConstantOfShape": _ALL,
    "CumSum": frozenset({1}),
    "Dropout": frozenset({1, 2}),
    "Expand": frozenset({1}),
    "Loop": frozenset({0, 1}),
    "MelWeightMatrix": _ALL,
    "NonMaxSuppression": frozenset({2, 3, 4}),
    "OneHot": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "Range": _ALL,
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Shape": _ALL,
    "Size": _ALL,
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Upsample": frozenset({1}),
}
_COMPARISONS = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "IsNaN", "IsInf"}
)
_ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Round", "Neg", "Abs", "Min", "Max", "Mod", "Pow", "Sqrt"}
) | {"ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"}
_PHASE = frozenset({"Mul", "Div", "Reciprocal", "Neg"})
_MASKED_BY = frozenset({"Add", "Sub", "Where", "Mul", "Min", "Max", "Tile"})
_BINARY_MASKED_BY = frozenset({"Mul", "Where", "Sub"})
_NORMS = frozenset({"LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"})
_MASKED = -100.0
_SURELY_MASKED = -1e4


class Judge:
    """Finds the reason why a stored float tensor is not a weight.

    Parameters
    ----------
    wiring : Wiring
    flow : Flow
        Both of the model that holds the candidates.
    """

    def __init__(self, wiring: Wiring, flow: Flow) -> None:
        self._wiring = wiring
        self._flow = flow
        self._stored: dict[Value, tuple[int, ...]] = {
            (0, t.name): tuple(int(d) for d in t.dims) for t in wiring.graphs[0].initializer
        }
        self._integers: dict[Value, int] = {
            (0, t.name): t.data_type for t in wiring.graphs[0].initializer if t.data_type in _INTEGERS
        }
        self._made: dict[Value, tuple[Value | None, ...]] = {
            (site.scope, name): self._data(site) for site in wiring.sites for name in site.node.output if name
        }
        self._with_data = DataConstants(wiring, flow)

    def reason(self, candidate: StoredTensor) -> str | None:
        """Return why a candidate is not a weight, in words for the user; None when it is one."""
        rules = (self._use, self._frequencies, self._mask, self._with_data.reason, _sinusoid, _neutral)
        return next((why for rule in rules if (why := rule(candidate)) is not None), None)

    def _use(self, candidate: StoredTensor) -> str | None:
        readings = candidate.readings
        if readings and all(_is_scale(r) or self._scales_levels(r) for r in readings):
            return "already quantised: a scale or zero point"
        if readings and all(_is_comparison(r) for r in readings):
            return "only compared with, never computed with"
        ends = self._ends((0, candidate.name), self._is_static_arithmetic)
        if ends and all(_is_argument(site, position) for site, position in ends):
            return f"argument of {ends[0][0].op}: a shape, a bound or a factor, not data"
        return None

    def _data(self, site: Site) -> tuple[Value | None, ...]:
        """Return the inputs whose values a node passes on: no shapes, and no fed indices."""
        picks = site.op == "Reshape" or (
            site.op == "Gather" and any(value in self._flow.dynamic for value in site.inputs[1:])
        )
        return site.inputs[:1] if picks else site.inputs

    def _scales_levels(self, reading: Reading) -> bool:
        """Return whether a reader multiplies the tensor, or rows of it, by values computed from stored integers.

        At least one of these integers must have a byte type: then they are the levels of a quantised weight.
        """
        return self._multiplies_levels(reading.site, reading.reader.input_index)

    def _multiplies_levels(self, site: Site, position: int) -> bool:
        if site.scope:
            return False
        if site.op in ("Gather", "Cast") and position == 0 and site.node.output:
            uses = self._wiring.consumers.get((0, site.node.output[0]), [])
            return bool(uses) and all(self._multiplies_levels(self._wiring.sites[i], at) for i, at in uses)
        if site.op != "Mul":
            return False
        waiting = [v for i, v in enumerate(site.inputs) if i != position]
        seen, has_bytes = set(waiting), False
        while waiting:
            value = waiting.pop()
            if value in self._integers:
                has_bytes |= self._integers[value] in _BYTES
            elif value is None or not self._made.get(value):
                return False
            else:
                waiting += [v for v in self._made[value] if v not in seen]
                seen.update(self._made[value])
        return has_bytes

    def _frequencies(self, candidate: StoredTensor) -> str | None:
        if content.wide_axes(candidate.shape) != 1 or not candidate.readings:
            return None
        ends = self._ends((0, candidate.name), self._is_phase)
        if (
            ends
            and all(site.op in ("Sin", "Cos") for site, _ in ends)
            and content.is_timescale(candidate.array())
        ):
            return "position encoding: frequencies that feed only Sin and Cos"
        return None

    def _mask(self, candidate: StoredTensor) -> str | None:
        values = content.few_values(candidate.array())
        if values is None or not candidate.readings:
            return None
        ops = {r.site.op for r in candidate.readings}
        table = content.wide_axes(candidate.shape) >= 2
        if set(values) == {0.0, 1.0} and table and ops <= _BINARY_MASKED_BY and ops & {"Mul", "Where"}:
            return "mask: values 0 and 1"
        low = values[0]
        if low > _MASKED or any(v > _MASKED and v != 0.0 for v in values) or not ops <= _MASKED_BY:
            return None
        if table or low <= _SURELY_MASKED:
            shown = " and ".join(f"{v:g}" for v in reversed(values))
            return f"attention mask: value{'s' if len(values) > 1 else ''} {shown}"
        return None

    def _ends(self, start: Value, passes: Callable[[Site, int], bool]) -> list[tuple[Site, int]]:
        """Return where the paths from a value end when they pass what `passes` allows; empty when one path escapes."""
        ends: list[tuple[Site, int]] = []
        waiting, seen = [start], {start}
        while waiting:
            value = waiting.pop()
            if value in self._wiring.returned:
                return []
            for index, position in self._wiring.consumers.get(value, ()):
                site = self._wiring.sites[index]
                if not passes(site, position):
                    ends.append((site, position))
                    continue
                behind = [(site.scope, name) for name in site.node.output if name]
                waiting += [v for v in behind if v not in seen]
                seen.update(behind)
        return ends

    def _is_static_arithmetic(self, site: Site, position: int) -> bool:
        if site.op not in _ARITHMETIC and (site.op not in MOVERS or (position and site.op != "Concat")):
            return False
        return all((site.scope, name) not in self._flow.data_dynamic for name in site.node.output)

    def _is_phase(self, site: Site, position: int) -> bool:
        """Return whether a node only computes a phase, position × frequency, from a vector of frequencies."""
        if site.op in _PHASE or site.op in ("Einsum", "Concat"):
            return True
        if site.op in MOVERS:
            return position == 0
        if site.op != "MatMul":
            return False
        return self._outer_product(site, position)

    def _outer_product(self, site: Site, position: int) -> bool:
        """Return whether a MatMul of a frequency vector is an outer product: its inner length is one."""
        value = site.inputs[position]
        dims = self._stored.get(value) if value is not None else None
        return dims is not None and len(dims) >= 2 and dims[-1 if position == 0 else -2] == 1


def _is_scale(reading: Reading) -> bool:
    op, position = reading.site.op, reading.reader.input_index
    if reading.site.node.op_type.startswith("QLinear"):
        return True
    return position in _SCALES.get(op, frozenset())


def _is_comparison(reading: Reading) -> bool:
    op = reading.site.op
    return op in _COMPARISONS or (op == "Where" and reading.reader.input_index == 0)


def _is_argument(site: Site, position: int) -> bool:
    return position in _ARGUMENTS.get(site.op, frozenset()) or (
        site.op.startswith("Reduce") and position == 1
    )


def _sinusoid(candidate: StoredTensor) -> str | None:
    array = candidate.array()
    if content.wide_axes(candidate.shape) == 2 and content.is_sinusoid(array):
        return "position encoding: a table of sines and cosines"
    if content.is_unit_pairs(array):
        return "encoding of a constant: pairs of a sine and a cosine"
    return None


def _neutral(candidate: StoredTensor) -> str | None:
    """Detect scales of one and shifts of zero that exporters add to norms without parameters; weights have names."""
    if not is_anonymous(candidate.name) or not candidate.readings:
        return None
    places = {r.reader.input_index for r in candidate.readings if r.site.op in _NORMS}
    if len(places) != 1 or any(r.site.op not in _NORMS for r in candidate.readings):
        return None
    only = content.few_values(candidate.array(), 1)
    found: dict[tuple[int, tuple[float, ...]], str] = {
        (1, (1.0,)): "scale of a norm without parameters: all ones",
        (2, (0.0,)): "shift of a norm without parameters: all zeros",
    }
    return found.get((places.pop(), only or ()))
