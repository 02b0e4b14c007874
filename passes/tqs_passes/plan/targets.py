"""What a file is made for: which runtimes can serve which forms of stored weights, as a table in code.

============ =================================================== ============================================
target       integer tiers                                       because
============ =================================================== ============================================
``ort-cpu``  all, by planes or native types; 8-bit products      onnxruntime's CPU provider
``ort-cuda`` all, by planes or native types                      planes fold on the host; MatMulNBits has 4, 8 bits
``tensorrt`` INT8, INT4: native, DequantizeLinear, signed grid   no unsigned, no INT2, no INT1; ranges int8
``portable`` all by Cast → Mul, standard types of opset ≤ 20     needs no fusion and no newer opset
============ =================================================== ============================================

Blocks may compute with float16 on every target (onnxruntime's CPU provider casts back and forth itself), but with
bfloat16 on ``ort-cuda`` and ``tensorrt`` only, because the CPU provider has no such kernels.

TensorRT also requires an even last dimension of an INT4 weight, scales above zero (all scales written here are), and a
reader with a quantised kernel: MatMul or Gemm for INT4, those or a convolution for INT8. Sources: the operator pages of
ONNX (DequantizeLinear 13, 21) and TensorRT's explicit-quantisation guide. Native INT2 is never written: onnxruntime
1.31 computes wrong results with it when the number of columns is not a multiple of 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from tqs_passes.encode.static import Kind
from tqs_passes.encode.weight import DQ_OPSET, INT4_OPSET, Encoding, Form
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.plan import Assignment, Compute, Plan, ServingTarget
from tqs_passes.tier import Tier
from tqs_passes.weights import Weight

#: Forms of integer tiers that each target runs. `refusal` holds TensorRT's own limits.
FORMS: dict[ServingTarget, frozenset[Form]] = {
    ServingTarget.ORT_CPU: frozenset(
        {Form.DEQUANTIZE, Form.CAST_MUL, Form.GATHERED, Form.NBITS, Form.DYNAMIC, Form.STATIC}
    ),
    ServingTarget.ORT_CUDA: frozenset(
        {Form.DEQUANTIZE, Form.CAST_MUL, Form.GATHERED, Form.NBITS, Form.STATIC}
    ),
    ServingTarget.TENSORRT: frozenset({Form.DEQUANTIZE, Form.STATIC}),
    ServingTarget.PORTABLE: frozenset({Form.CAST_MUL, Form.GATHERED}),
}
#: Targets on which MatMulNBits multiplies 8-bit codes at full precision without being slow; on the CPU it takes 23
#: times as long as FP32.
WIDE_NBITS = frozenset({ServingTarget.ORT_CUDA})
#: Forms that use operators outside the ONNX standard.
_FOREIGN = frozenset({Form.NBITS})
#: Integer tiers with a native type, and the lowest opset in which Cast supports it.
NATIVE_OPSETS = {Tier.INT8: 9, Tier.INT4: INT4_OPSET}


@dataclass(frozen=True, slots=True)
class Serving:
    """What a file is made for.

    Parameters
    ----------
    target : ServingTarget
    encoding : Encoding
        `planes`: bit planes below 8 bits, at the model's own opset; `native`: ONNX's integer types only.
    constants : {"small", "keep"}
        Whether tensors that are not weights are stored in fewer bytes (`tqs_passes.transforms.shrink_constants`).
    opset : int or None
        Convert the model to this opset first; None: keep its opset.
    standard_ops : bool
        Use ONNX's own operators only, none of the runtime's (`com.microsoft`).
    compute : Compute or None
        Blocks that compute with 16-bit floats.
    rows : bool
        Offer row tiers: channels of one weight at different widths.
    names : {"auto", "short", "keep"}
        Whether inner names become short (`tqs_passes.transforms.slim.short_names`); auto: where they exceed 3 % of a
        file with weights of 4 bits.
    graph : {"auto", "slim", "keep"}
        Whether the graph itself is made smaller (`tqs_passes.transforms.slim`); auto: where it exceeds 3 % of that.
    pinned : tuple of str
        Patterns of inner names to keep.
    groups : tuple of int
        Also offer matrices with one scale for each group of so many values of a channel.

    Raises
    ------
    InputError
        The target cannot compute with that type.
    """

    target: ServingTarget = ServingTarget.ORT_CPU
    encoding: Encoding = Encoding.PLANES
    constants: Literal["small", "keep"] = "small"
    opset: int | None = None
    compute: Compute | None = None
    standard_ops: bool = False
    rows: bool = True
    groups: tuple[int, ...] = ()
    names: Literal["auto", "short", "keep"] = "auto"
    graph: Literal["auto", "slim", "keep"] = "auto"
    pinned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a compute precision that the target does not support."""
        require_computes(self.compute, self.target)

    @property
    def rows_as_served(self) -> bool:
        """`rows` as it takes effect: native types have one width per weight."""
        return self.rows and self.stored_as is Encoding.PLANES

    @property
    def constants_as_stored(self) -> Literal["small", "keep"]:
        """`constants` as it takes effect: TensorRT has no uint8 tensors for look-up tables."""
        return "keep" if self.target is ServingTarget.TENSORRT else self.constants

    @property
    def names_as_stored(self) -> Literal["short", "keep"]:
        """`names` once the automatic choice is made; names are kept as long as it is not."""
        return "short" if self.names == "short" else "keep"

    @property
    def graph_as_stored(self) -> Literal["slim", "keep"]:
        """`graph` once the automatic choice is made; the graph is kept as long as it is not."""
        return "slim" if self.graph == "slim" else "keep"

    @property
    def stored_as(self) -> Encoding:
        """The encoding as it takes effect: TensorRT supports native types only."""
        return Encoding.NATIVE if self.target is ServingTarget.TENSORRT else self.encoding

    def under(self, profile: str) -> Serving:
        """Return this as it takes effect under a profile: `qdq` stores native integers and plain constants."""
        return replace(self, encoding=Encoding.NATIVE, constants="keep") if profile == "qdq" else self

    @property
    def kind_of_ranges(self) -> Kind:
        """The integers of activations whose range is fixed: TensorRT has no zero points."""
        return "int8" if self.target is ServingTarget.TENSORRT else "uint8"


def require_computes(compute: Compute | None, target: ServingTarget) -> None:
    """Refuse a compute type that a target does not support.

    Raises
    ------
    InputError
        The target has no kernels for bfloat16.
    """
    if compute is None or compute.dtype == "float16":
        return
    if target not in (ServingTarget.ORT_CUDA, ServingTarget.TENSORRT):
        raise InputError(
            f"{target.value} does not compute with bfloat16",
            where="`compute`",
            todo="Use `target` ort-cuda or tensorrt, or `compute` fp16",
        )


def serves(serving: Serving, form: Form) -> bool:
    """Return whether the target and the allowed operators support a form of integer tiers."""
    return form in FORMS[serving.target] and not (serving.standard_ops and form in _FOREIGN)


class _Readers(StrEnum):
    PRODUCT = "MatMul or Gemm"
    CONVOLUTION = "MatMul, Gemm, Conv or ConvTranspose"


_KERNELS = {
    Tier.INT4: (_Readers.PRODUCT, frozenset({"MatMul", "Gemm"})),
    Tier.INT8: (_Readers.CONVOLUTION, frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})),
}


def refusal(a: Assignment, weight: Weight, target: ServingTarget, opset: int) -> str | None:
    """Return why a target cannot serve a weight stored this way, in words for the user; None when it can."""
    if a.form is Form.KEEP or a.form is Form.CAST:
        if target is ServingTarget.TENSORRT and a.dtype == "float64":
            return "TensorRT has no float64"
        return None
    if a.form is Form.NBITS and a.form not in FORMS[target]:
        return (
            f"MatMulNBits is an operator of onnxruntime's CPU and CUDA providers: {target.value} may lack it"
        )
    if a.form is Form.NBITS and a.tier is Tier.INT8 and target not in WIDE_NBITS:
        return f"MatMulNBits with 8 bits is slow or missing on {target.value}"
    if a.form is Form.DYNAMIC and a.form not in FORMS[target]:
        return (
            f"8-bit products are computed by onnxruntime's CPU provider: {target.value} may lack the kernels"
        )
    native = a.encoding is Encoding.NATIVE
    stored = Tier.INT8 if a.form is Form.STATIC else a.tier
    if native and stored not in NATIVE_OPSETS:
        return f"{a.tier} has no native type that runtimes compute with correctly"
    if native and opset < NATIVE_OPSETS[stored]:
        return f"native {stored} needs opset {NATIVE_OPSETS[stored]}, the model has {opset}"
    if native and a.grid is not Grid.SIGNED:
        return f"native {a.tier} has no {a.grid} levels"
    if target is ServingTarget.PORTABLE:
        if a.form not in FORMS[target]:
            return "DequantizeLinear computes with 8-bit activations in some runtimes, so a portable file has none"
        return "native INT4 needs opset 21" if native and a.tier is Tier.INT4 else None
    return _tensorrt(a, weight, opset) if target is ServingTarget.TENSORRT else None


def _tensorrt(a: Assignment, weight: Weight, opset: int) -> str | None:
    if a.rows:
        return "TensorRT supports one width per weight, no row tiers"
    if a.tier not in _KERNELS:
        return f"TensorRT has no {a.tier}, only INT8 and INT4"
    explicit = a.form in (Form.DEQUANTIZE, Form.STATIC)
    if a.encoding is not Encoding.NATIVE or not explicit or opset < DQ_OPSET:
        return "TensorRT supports only integers of native types decoded by DequantizeLinear"
    if a.grid is not Grid.SIGNED or any(r.kind != "int8" for r in a.ranges):
        return "TensorRT supports only symmetric signed integers"
    names, kernels = _KERNELS[a.tier]
    others = [r.op_type for r in weight.readers if r.op_type not in kernels or r.in_body or r.domain]
    if others or a.dtype != "float32":
        return f"TensorRT supports {a.tier} only for float32 weights of {names}, not {others[0] if others else a.dtype}"
    if a.tier is Tier.INT4 and a.shape[-1] % 2:
        return f"TensorRT needs an even last dimension of an INT4 weight, not {a.shape[-1]}"
    return None


def refusals(
    plan: Plan, weights: Iterable[Weight], target: ServingTarget, opset: int
) -> tuple[tuple[str, str], ...]:
    """Return (label, reason) of every weight of a plan that a target cannot serve as planned."""
    by_name = {w.name: w for w in weights}
    found = (
        (a, refusal(a, by_name[a.weight], target, opset)) for a in plan.assignments if a.weight in by_name
    )
    return tuple((a.label, why) for a, why in found if why is not None)
