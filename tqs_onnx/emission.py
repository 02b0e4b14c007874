"""Writes the file of a plan: a pure function of source, plan and codes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from tqs_onnx.version import VERSION
from tqs_passes.encode.fragment import part_name
from tqs_passes.encode.planes import plane_name
from tqs_passes.encode.rows import MOST_PLANES
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model
from tqs_passes.files.spill import Spill
from tqs_passes.files.text import read_text
from tqs_passes.graph.names import names_in, opset_of
from tqs_passes.graph_pass import Skip
from tqs_passes.grids.grid import Codes
from tqs_passes.pipeline import Pipeline
from tqs_passes.plan.assigned import target_of
from tqs_passes.plan.plan import Compute, Plan
from tqs_passes.survey.bytes_by_kind import BytesByKind, bytes_by_kind
from tqs_passes.transforms.convert_opset import ConvertOpset
from tqs_passes.transforms.half_precision.half import HalfCompute
from tqs_passes.transforms.rewrite import Rewrite
from tqs_passes.transforms.shrink_constants import ShrinkConstants
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.slimming import Slimming, slim_passes

#: Placeholder as long as a digest, so that the skeleton has the size of the file.
_DIGEST_LENGTH = 64
#: Where a file's metadata name its plan.
PLAN_NOTE = "tqs_onnx.plan_sha256"
#: Maximum number of reasons in one line.
_MOST_REASONS = 6


def metadata_of(source_sha256: str, plan_digest: str) -> dict[str, str]:
    """Return the entries added to the model's metadata."""
    return {
        PLAN_NOTE: plan_digest,
        "tqs_onnx.source_sha256": source_sha256,
        "tqs_onnx.version": VERSION,
    }


def placeholder_metadata() -> dict[str, str]:
    """Return metadata of the same length as any plan's, for sizing."""
    return metadata_of("0" * _DIGEST_LENGTH, "0" * _DIGEST_LENGTH)


def preparation(
    labels: Mapping[str, str],
    constants: Literal["small", "keep"],
    opset: int | None,
    compute: Compute | None,
    slimming: Slimming | None = None,
) -> Pipeline:
    """Return the passes that prepare a lifted model before its weights are stored; allocation sizes the prepared model.

    Slimming comes before the constants are encoded, whose values it compares; short names come first, so that equal
    names in two bodies never meet, and again last, for what was made in between.

    Parameters
    ----------
    labels : mapping of str to str
        Label of every weight, by name.
    constants : {"small", "keep"}
    opset : int or None
    compute : Compute or None
    slimming : Slimming, optional
    """
    weights, slimming = frozenset(labels), slimming or Slimming()
    short = ShortNames(weights, slimming.pinned) if slimming.names else None
    return Pipeline.of(
        ConvertOpset(opset) if opset is not None else None,
        HalfCompute(compute.dtype, compute.blocks, labels, deferred=True) if compute is not None else None,
        short,
        *(slim_passes(weights) if slimming.graph else ()),
        ShrinkConstants(weights) if constants == "small" else None,
        short,
    )


def emission(
    plan: Plan,
    codes: Mapping[str, Codes] | None = None,
    spill: Spill | None = None,
) -> Pipeline:
    """Return all passes of emission, in order: the preparation, then the rewrite.

    Parameters
    ----------
    plan : Plan
    codes : mapping of str to Codes, optional
        Codes of data-aware roundings.
    spill : Spill, optional
        Receives the encoded tensors, one weight at a time.
    """
    labels = {a.weight: a.label for a in plan.assignments}
    metadata = metadata_of(plan.source_sha256, plan.digest())
    return Pipeline.of(
        *preparation(labels, plan.constants, plan.opset, plan.compute, slimming_for(plan)).passes,
        Rewrite(plan, codes or {}, metadata, VERSION, spill),
    )


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A lifted model as the rewrite sees it.

    Parameters
    ----------
    model : Model
        The model: converted to another opset, its blocks cast to 16-bit floats, and its constants shrunk, as requested.
    skipped : tuple of Skip
        Nodes of the chosen blocks that still compute in float32.
    """

    model: Model
    skipped: tuple[Skip, ...] = ()

    @property
    def computed(self) -> Mapping[str, str]:
        """The type of the block that reads a weight, if it differs from the weight's stored type."""
        return self.model.deferred


def prepared(
    model: Model,
    labels: Mapping[str, str],
    constants: Literal["small", "keep"],
    opset: int | None,
    compute: Compute | None = None,
    slimming: Slimming | None = None,
) -> PreparedModel:
    """Return the lifted model as the rewrite sees it; `preparation` lists the passes.

    Raises
    ------
    InputError
        The model cannot be converted to this opset, or no block can compute in this type.
    """
    result = preparation(labels, constants, opset, compute, slimming).apply(model)
    return PreparedModel(result.model, result.skipped_by(HalfCompute.name))


def stayed(skipped: tuple[Skip, ...]) -> str:
    """Return one line about the nodes that still compute in float32, with their reasons counted."""
    reasons = Counter(skip.why for skip in skipped).most_common()
    shown = "; ".join(f"{why} ({n})" for why, n in reasons[:_MOST_REASONS])
    more = "; …" if len(reasons) > _MOST_REASONS else ""
    return f"{len(skipped)} nodes of the blocks compute in float32: {shown}{more}"


def rewritten(
    model: Model, plan: Plan, codes: Mapping[str, Codes] | None = None, spill: Spill | None = None
) -> Model:
    """Return the model that `emit` writes; its encoded tensors are in the spill, if one is given."""
    return emission(plan, codes, spill).apply(model).model


def prepared_for(model: Model, plan: Plan) -> Model:
    """Return the lifted model as the rewrite of a plan sees it."""
    labels = {a.weight: a.label for a in plan.assignments}
    return prepared(model, labels, plan.constants, plan.opset, plan.compute, slimming_for(plan)).model


def kinds_of_file(emitted: Model, lifted: Model, plan: Plan) -> BytesByKind:
    """Return the bytes of an emitted file by kind."""
    ready = prepared_for(lifted, plan)
    names = names_in(ready)
    weights = frozenset(
        t.name
        for t in emitted.proto.graph.initializer
        if t.name in ready.stored_names(a.weight for a in plan.assignments)
    )
    parts: dict[str, str] = {}
    for index, a in enumerate(plan.assignments):
        stem = target_of(a, index, opset_of(ready.proto), names).stem
        parts |= dict.fromkeys((part_name(stem, "scale"), part_name(stem, "order")), "scales")
        planes = (plane_name(part_name(stem, "quantized"), i) for i in range(MOST_PLANES))
        parts |= dict.fromkeys(planes, "weights")
    for tensor in emitted.proto.graph.initializer:
        if tensor.name.startswith(f"{names.namespace}."):
            parts.setdefault(tensor.name, "tables")
    return bytes_by_kind(emitted, weights, parts)


def slimming_for(plan: Plan) -> Slimming:
    """Return how a plan slims the graph."""
    return Slimming(plan.names == "short", plan.graph == "slim", plan.pinned)


def emit(model: Model, plan: Plan, out: Path, codes: Mapping[str, Codes] | None = None) -> None:
    """Write the emitted file atomically; besides the model itself, only one weight at a time is in memory.

    If its names are short, the map of names is written beside it (see `names_file`).

    Parameters
    ----------
    model : Model
        Lifted model.
    plan : Plan
        A plan for this model.
    out : Path
        Path to write; must differ from the source.
    codes : mapping of str to Codes, optional
        Codes of data-aware roundings.

    Raises
    ------
    InputError
        The plan does not fit the model, or the file cannot be written.
    """
    if not out.parent.is_dir():
        raise InputError(
            "the folder does not exist", where=str(out.parent), todo="Create it, or choose another `out`"
        )
    with Spill(out.parent) as spill:
        written = rewritten(model, plan, codes, spill)
        # The map first: where the file is, a stop at any moment leaves its map beside it.
        if written.names:
            text = json.dumps(dict(sorted(written.names.items())), indent=1, ensure_ascii=False)
            write_text(names_file(out), text + "\n")
        else:
            names_file(out).unlink(missing_ok=True)
        save_model(written, out)


def names_file(out: Path) -> Path:
    """Return the path of the map from the short names of an emitted file to the names in its source."""
    return out.with_name(f"{out.name}.names.json")


def read_names(path: Path) -> dict[str, str]:
    """Return the map in a file of names: what each short name stands for.

    Raises
    ------
    InputError
        The file is not such a map.
    """
    try:
        found: object = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("is not a map of names", where=str(path), todo="Emit the file again") from error
    if not isinstance(found, dict):
        raise InputError("is not a map of names", where=str(path), todo="Emit the file again")
    return {str(short): str(name) for short, name in cast("dict[object, object]", found).items()}
