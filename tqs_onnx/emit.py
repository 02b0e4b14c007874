"""Write the file a plan describes: a pure function of source, plan and codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tqs_onnx.version import VERSION
from tqs_passes.convert_opset import ConvertOpset
from tqs_passes.errors import InputError
from tqs_passes.grid import Codes
from tqs_passes.model_io import Model
from tqs_passes.plan import Plan
from tqs_passes.rewrite import Rewrite
from tqs_passes.save import save_model
from tqs_passes.shrink_constants import ShrinkConstants
from tqs_passes.spill import Spill

#: Digest-long placeholder, so that the skeleton's size is the file's.
_DIGEST_LENGTH = 64


def metadata_of(source_sha256: str, plan_digest: str) -> dict[str, str]:
    """Return what is added to the model's metadata."""
    return {
        "tqs_onnx.plan_sha256": plan_digest,
        "tqs_onnx.source_sha256": source_sha256,
        "tqs_onnx.version": VERSION,
    }


def placeholder_metadata() -> dict[str, str]:
    """Return metadata of the same length as any plan's, for sizing."""
    return metadata_of("0" * _DIGEST_LENGTH, "0" * _DIGEST_LENGTH)


def prepared(
    model: Model, weights: frozenset[str], constants: Literal["small", "keep"], opset: int | None
) -> Model:
    """Return the lifted model as the rewrite sees it: converted, its constants stored small, where asked for.

    Raises
    ------
    InputError
        It cannot be converted to this opset.
    """
    if opset is not None:
        model = ConvertOpset(opset).apply(model).model
    return ShrinkConstants(weights).apply(model).model if constants == "small" else model


def rewritten(
    model: Model, plan: Plan, codes: Mapping[str, Codes] | None = None, spill: Spill | None = None
) -> Model:
    """Return the model that `emit` writes; its encoded tensors lie in the spill, where there is one."""
    metadata = metadata_of(plan.source_sha256, plan.digest())
    names = frozenset(a.weight for a in plan.assignments)
    ready = prepared(model, names, plan.constants, plan.opset)
    return Rewrite(plan, codes or {}, metadata, VERSION, spill).apply(ready).model


def emit(model: Model, plan: Plan, out: Path, codes: Mapping[str, Codes] | None = None) -> None:
    """Write the emitted file atomically; one weight at a time is in memory, besides what the model itself holds.

    Parameters
    ----------
    model : Model
        Lifted model.
    plan : Plan
        Made for this model.
    out : Path
        Target; must not be the source.
    codes : mapping of str to Codes, optional
        Codes of data-aware roundings.

    Raises
    ------
    InputError
        The plan does not fit the model, or the file cannot be written.
    """
    if not out.parent.is_dir():
        raise InputError("the folder does not exist", where=str(out.parent))
    with Spill(out.parent) as spill:
        save_model(rewritten(model, plan, codes, spill), out)
