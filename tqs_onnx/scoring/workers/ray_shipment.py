"""Packs a plan for transfer: the parts of the model it needs, as objects named by their content.

Every weight is one object, named by its SHA-256; weights of equal content share one object. The graph is sent without
them, and no paths of the driver are sent. An object store that shares memory between the processes of a node, as Ray's
does, holds each object once per node; sessions read it there, so nothing is written to disk or copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_onnx.rollout.injection import Exposable
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan
from tqs_passes.encode.weight import np_dtype
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model, serialize

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Packed:
    """The description of one weight in transfer.

    Parameters
    ----------
    name, dtype : str
    shape : tuple of int
    sha256 : str
        SHA-256 of its bytes, row-major.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Shipment:
    """A plan and its model, without the values of the weights.

    Parameters
    ----------
    plan : SweepPlan
        The plan, with an empty model.
    graph : bytes
        The serialized model, with every weight as an input.
    weights : tuple of Packed
    """

    plan: SweepPlan
    graph: bytes
    weights: tuple[Packed, ...]


def pack(plan: SweepPlan, source: Exposable, put: Callable[[str, Bytes], None]) -> Shipment:
    """Return a plan ready for transfer; `put` receives the content of its weights, each once.

    Parameters
    ----------
    plan : SweepPlan
    source : Exposable
        The plan's model.
    put : callable
        Called with a SHA-256 and the bytes that have it.
    """
    packed: list[Packed] = []
    sent: set[str] = set()
    for name, array in source.arrays.items():
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        weight = Packed(name, array.dtype.name, array.shape, _digest(content))
        if weight.sha256 not in sent:
            put(weight.sha256, content)
            sent.add(weight.sha256)
        packed.append(weight)
    contexts = replace(plan.contexts, truth={})
    bare = replace(plan, model=Model(onnx.ModelProto(), Path()), contexts=contexts)
    return Shipment(bare, serialize(source.proto), tuple(packed))


def unpack(shipment: Shipment, get: Callable[[str], Bytes]) -> Exposable:
    """Return the model of a shipment; its weights are views of what `get` returns for a SHA-256.

    Raises
    ------
    InputError
        The received bytes differ from those sent.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for weight in shipment.weights:
        content = get(weight.sha256)
        if _digest(content) != weight.sha256:
            raise InputError(
                f"weight {weight.name!r} was damaged in transfer", todo="Run the same command again"
            )
        arrays[weight.name] = content.view(np_dtype(weight.dtype)).reshape(weight.shape)
    return Exposable(onnx.ModelProto.FromString(shipment.graph), arrays)


def _digest(content: Bytes) -> str:
    return hashlib.sha256(content.data).hexdigest()
