"""Converts a model to another opset; stored values stay in place.

Operators change their meaning between opsets, so this pass runs only on request, and `verify` rolls out its result like
any other. ONNX's own converter does the work; tensors of `LEAST_BYTES` or more are presented to it as graph inputs, so
that neither their size nor their external files matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx
import onnx.version_converter

from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_n_bytes
from tqs_passes.graph.names import opset_of
from tqs_passes.graph_pass import PassResult

#: Smaller tensors are shapes and axes, whose values the converter reads.
LEAST_BYTES = 1024
_LOWEST_IR = {19: 9, 21: 10, 23: 11, 25: 13}


@dataclass(frozen=True, slots=True)
class ConvertOpset:
    """The pass (see the module docstring).

    Parameters
    ----------
    opset : int
    """

    opset: int

    name: ClassVar[str] = "convert-opset"

    def apply(self, model: Model) -> PassResult:
        """Return the converted model, or the model itself if it has that opset.

        Raises
        ------
        InputError
            The converter cannot convert from the model's opset to this one.
        """
        if opset_of(model.proto) == self.opset:
            return PassResult(model)
        newest = onnx.defs.onnx_opset_version()
        if not 1 <= self.opset <= newest:
            raise InputError(
                f"cannot be converted to opset {self.opset}: opsets run from 1 to {newest}",
                where="`opset`",
                todo="Leave it out",
            )
        source = onnx.ModelProto()
        source.CopyFrom(model.proto)
        stored = [t for t in source.graph.initializer if _is_big(t)]
        names = {t.name for t in stored}
        small = [t for t in source.graph.initializer if t.name not in names]
        del source.graph.initializer[:]
        source.graph.initializer.extend(small)
        for tensor in stored:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            source.graph.input.append(info)
        try:
            proto = onnx.version_converter.convert_version(source, self.opset)
        except (
            onnx.version_converter.ConvertError,
            onnx.checker.ValidationError,
            onnx.shape_inference.InferenceError,
            RuntimeError,
            ValueError,
        ) as error:
            raise InputError(
                f"cannot be converted to opset {self.opset}: {error}", where="`opset`", todo="Leave it out"
            ) from error
        kept = [i for i in proto.graph.input if i.name not in names]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        proto.graph.initializer.extend(stored)
        del proto.metadata_props[:]
        proto.metadata_props.extend(model.proto.metadata_props)
        lowest = max((ir for opset, ir in _LOWEST_IR.items() if opset <= self.opset), default=0)
        proto.ir_version = max(model.proto.ir_version, lowest)
        return PassResult(replace(model, proto=proto), ("opset",))


def _is_big(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type != onnx.TensorProto.STRING and tensor_n_bytes(tensor) >= LEAST_BYTES
