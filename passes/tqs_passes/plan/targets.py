"""What a file is made for: which runtimes can serve which ways to store a weight, as a table in code.

============ =================================================== ============================================
target       integer tiers                                       because
============ =================================================== ============================================
``ort-cpu``  all, by planes or native types                      onnxruntime's CPU provider
``ort-cuda`` all, by planes or native types                      planes fold on the host; MatMulNBits has 4, 8 bits
``tensorrt`` INT8, INT4: native, DequantizeLinear, signed grid   weight-only DQ; no unsigned, no INT2, no INT1
``portable`` all by Cast → Mul, standard types of opset ≤ 20     no fusion, no opset bump is relied upon
============ =================================================== ============================================

Blocks may compute with float16 on every target (onnxruntime's CPU provider casts back and forth itself), with bfloat16
on ``ort-cuda`` and ``tensorrt`` only: the CPU provider has no such kernels.

TensorRT also wants the last dimension of an INT4 weight even, scales above zero (ours always are), and a reader that
has a quantised kernel: MatMul or Gemm for INT4, those or a convolution for INT8. Sources: the operator pages of ONNX
(DequantizeLinear 13, 21) and TensorRT's explicit-quantisation guide. Native INT2 is never written: onnxruntime 1.31
computes garbage with it where the number of columns is no multiple of 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tqs_passes.encode.weight import DQ_OPSET, INT4_OPSET, Encoding, Form
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.plan import Assignment, Compute, Plan, ServingTarget
from tqs_passes.tier import Tier
from tqs_passes.weights import Weight

#: Forms of integer tiers that each target runs. MatMulNBits is a kernel of onnxruntime's CPU provider; its CUDA kernel
#: has not been measured yet. TensorRT's own limits are in `refusal`.
FORMS: dict[ServingTarget, frozenset[Form]] = {
    ServingTarget.ORT_CPU: frozenset({Form.DEQUANTIZE, Form.CAST_MUL, Form.GATHERED, Form.NBITS}),
    ServingTarget.ORT_CUDA: frozenset({Form.DEQUANTIZE, Form.CAST_MUL, Form.GATHERED}),
    ServingTarget.TENSORRT: frozenset({Form.DEQUANTIZE}),
    ServingTarget.PORTABLE: frozenset({Form.CAST_MUL, Form.GATHERED}),
}
#: Forms of operators that ONNX does not define.
_FOREIGN = frozenset({Form.NBITS})
#: Native type of an integer tier, and the lowest opset that has it with Cast.
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
        Whether tensors that are not weights are stored small (`tqs_passes.transforms.shrink_constants`).
    opset : int or None
        Convert the model to this opset first; None: its own.
    standard_ops : bool
        ONNX's own operators only, none of the runtime's (`com.microsoft`).
    compute : Compute or None
        Blocks that compute with 16-bit floats.
    rows : bool
        Offer row tiers: channels of one weight at different widths.
    groups : tuple of int
        Offer matrices with a scale for so many values of a channel, too.

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

    def __post_init__(self) -> None:
        """Refuse a compute precision that the target does not have."""
        require_computes(self.compute, self.target)

    @property
    def rows_as_served(self) -> bool:
        """`rows` as it applies: native types have one width a weight."""
        return self.rows and self.stored_as is Encoding.PLANES

    @property
    def constants_as_stored(self) -> Literal["small", "keep"]:
        """`constants` as it applies: TensorRT has no uint8 tensors to look values up with."""
        return "keep" if self.target is ServingTarget.TENSORRT else self.constants

    @property
    def stored_as(self) -> Encoding:
        """The encoding as it applies: TensorRT has native types only."""
        return Encoding.NATIVE if self.target is ServingTarget.TENSORRT else self.encoding


def require_computes(compute: Compute | None, target: ServingTarget) -> None:
    """Refuse blocks of a type that a target does not compute with.

    Raises
    ------
    InputError
        It has no kernels for bfloat16.
    """
    if compute is None or compute.dtype == "float16":
        return
    if target not in (ServingTarget.ORT_CUDA, ServingTarget.TENSORRT):
        raise InputError(
            f"{target.value} does not compute with bfloat16",
            where="--compute bf16",
            todo="Give --target ort-cuda or tensorrt, or --compute fp16",
        )


def serves(serving: Serving, form: Form) -> bool:
    """Whether what a file is made for runs a form of integer tiers."""
    return form in FORMS[serving.target] and not (serving.standard_ops and form in _FOREIGN)


class _Readers(StrEnum):
    PRODUCT = "MatMul or Gemm"
    CONVOLUTION = "MatMul, Gemm, Conv or ConvTranspose"


_KERNELS = {
    Tier.INT4: (_Readers.PRODUCT, frozenset({"MatMul", "Gemm"})),
    Tier.INT8: (_Readers.CONVOLUTION, frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})),
}


def refusal(a: Assignment, weight: Weight, target: ServingTarget, opset: int) -> str | None:
    """Return why a target cannot serve a weight stored like this, in words for the user; None when it can."""
    if a.form is Form.KEEP or a.form is Form.CAST:
        if target is ServingTarget.TENSORRT and a.dtype == "float64":
            return "TensorRT has no float64"
        return None
    if a.form is Form.NBITS and a.form not in FORMS[target]:
        return f"MatMulNBits is an operator of onnxruntime's own, for its CPU provider: {target.value} may lack it"
    native = a.encoding is Encoding.NATIVE
    if native and a.tier not in NATIVE_OPSETS:
        return f"{a.tier} has no native type that runtimes compute with soundly"
    if native and opset < NATIVE_OPSETS[a.tier]:
        return f"native {a.tier} needs opset {NATIVE_OPSETS[a.tier]}, the model has {opset}"
    if native and a.grid is not Grid.SIGNED:
        return f"native {a.tier} has no {a.grid} levels"
    if target is ServingTarget.PORTABLE:
        if a.form not in FORMS[target]:
            return (
                "DequantizeLinear computes with 8-bit activations in some runtimes: a portable file has none"
            )
        return "native INT4 needs opset 21" if native and a.tier is Tier.INT4 else None
    return _tensorrt(a, weight, opset) if target is ServingTarget.TENSORRT else None


def _tensorrt(a: Assignment, weight: Weight, opset: int) -> str | None:
    if a.rows:
        return "TensorRT has one width a weight, no row tiers"
    if a.tier not in _KERNELS:
        return f"TensorRT has no {a.tier}: INT8 and INT4 only"
    if a.encoding is not Encoding.NATIVE or a.form is not Form.DEQUANTIZE or opset < DQ_OPSET:
        return "TensorRT takes integers by DequantizeLinear from native types only"
    if a.grid is not Grid.SIGNED:
        return "TensorRT takes symmetric signed integers only"
    names, kernels = _KERNELS[a.tier]
    others = [r.op_type for r in weight.readers if r.op_type not in kernels or r.in_body or r.domain]
    if others or a.dtype != "float32":
        return f"TensorRT takes {a.tier} float32 weights of {names} only, not of {others[0] if others else a.dtype}"
    if a.tier is Tier.INT4 and a.shape[-1] % 2:
        return f"TensorRT wants the last dimension of an INT4 weight even, not {a.shape[-1]}"
    return None


def refusals(
    plan: Plan, weights: Iterable[Weight], target: ServingTarget, opset: int
) -> tuple[tuple[str, str], ...]:
    """Return (label, why) of every weight of a plan that a target cannot serve as planned."""
    by_name = {w.name: w for w in weights}
    found = (
        (a, refusal(a, by_name[a.weight], target, opset)) for a in plan.assignments if a.weight in by_name
    )
    return tuple((a.label, why) for a, why in found if why is not None)
