"""What allocation needs to know of a model: candidates with exact bytes, the size of the rest, and a byte budget."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

from onnx.external_data_helper import uses_external_data

from tqs_onnx.allocate.costing import Request
from tqs_onnx.allocate.file_size import FileSize
from tqs_onnx.allocate.tier_set import TierSet, refuse
from tqs_onnx.emit import Prepared, placeholder_metadata, prepared
from tqs_onnx.score.store import Scores
from tqs_onnx.source import Source
from tqs_onnx.version import VERSION
from tqs_passes.candidates import Menu, kitchen_of, menus
from tqs_passes.encode.fragment import field_size
from tqs_passes.encode.weight import np_dtype
from tqs_passes.errors import InputError
from tqs_passes.forms import Profile
from tqs_passes.rewrite import kept_size, skeleton
from tqs_passes.scales import DEFAULT_ROUNDING, FreeRounding
from tqs_passes.targets import Serving
from tqs_passes.tier import Tier


def request_for(
    source: Source,
    scores: Scores,
    profile: Profile,
    tiers: TierSet | tuple[Tier, ...],
    serving: Serving | None = None,
    rounding: FreeRounding = DEFAULT_ROUNDING,
) -> Request:
    """Return everything allocation needs: candidates with exact bytes and errors, scores and sizes.

    Raises
    ------
    InputError
        The scores are of another model.
    """
    require_scores_of(source, scores)
    serving = serving or Serving()
    ready = prepared_source(source, serving)
    return Request(
        menus_of(source, ready, profile, tiers, serving, rounding),
        scores,
        size_of(source, ready),
        profile,
        serving,
    )


def require_scores_of(source: Source, scores: Scores) -> None:
    """Refuse the scores of another model.

    Raises
    ------
    InputError
        The digests differ, or the scored weights are not those of the model.
    """
    names = {w.name for w in source.survey.weights}
    if scores.source_sha256 != source.sha256 or {s.weight for s in scores.weights} != names:
        raise InputError("the scores are of another model", where=str(source.path), todo="Score it again")


def prepared_source(source: Source, serving: Serving) -> Prepared:
    """Return the lifted model of a source as emission sees it (see `prepared`)."""
    labels = {w.name: w.label for w in source.survey.weights}
    return prepared(source.lifted, labels, serving.constants_as_stored, serving.opset, serving.compute)


def menus_of(
    source: Source,
    ready: Prepared,
    profile: Profile,
    tiers: TierSet | tuple[Tier, ...],
    serving: Serving,
    rounding: FreeRounding = DEFAULT_ROUNDING,
) -> tuple[Menu, ...]:
    """Return every way to store each weight of a source, errors by this rounding; `ready` is its prepared model.

    Raises
    ------
    InputError
        A rule of the tier set matches nothing, or leaves a weight no way to be stored; the weights are named.
    """
    tier_set = tiers if isinstance(tiers, TierSet) else TierSet(tiers)
    weights = tuple(replace(w, dtype=ready.computed.get(w.name, w.dtype)) for w in source.survey.weights)
    exceptions = tier_set.exceptions(weights)
    found = menus(kitchen_of(ready.model, profile, serving, rounding), weights, tier_set.tiers, exceptions)
    refuse([m.weight for m in found if not m.candidates], "no tier that the rules leave can be stored")
    return found


def size_of(source: Source, ready: Prepared) -> FileSize:
    """Return what a file made from a source is made of besides its weights; `ready` is its prepared model."""
    names = frozenset(w.name for w in source.survey.weights)
    bare = skeleton(ready.model, names, placeholder_metadata(), VERSION)
    # A tensor stored in another file now will be stored in this one.
    moved = sum(
        field_size(kept_size(t)) - field_size(t.ByteSize())
        for t in bare.graph.initializer
        if uses_external_data(t)
    )
    graph = bare.graph.ByteSize()
    whole = bare.ByteSize() - field_size(graph) + field_size(graph + moved)
    return FileSize(source.facts.n_bytes, whole, graph + moved)


def budget_bytes(source_bytes: int, compression: float | None, max_bytes: int | None) -> int:
    """Return the byte budget of a file.

    Raises
    ------
    InputError
        Neither or both are given, or one is not positive.
    """
    if (compression is None) == (max_bytes is None):
        raise InputError("give either --compression or --max-bytes")
    if max_bytes is not None:
        if max_bytes <= 0:
            raise InputError(f"--max-bytes must be positive, not {max_bytes}")
        return max_bytes
    assert compression is not None
    if not compression > 0:
        raise InputError(f"--compression must be positive, not {compression}")
    ratio = source_bytes / compression
    return int(ratio) if math.isfinite(ratio) else sys.maxsize


def bytes_for_weights(request: Request, weight_compression: float) -> int:
    """Return the byte budget of a file whose weights, with scales, tables, names and nodes, are so many times smaller.

    Raises
    ------
    InputError
        The ratio is not positive.
    """
    if not weight_compression > 0:
        raise InputError(f"--weight-compression must be positive, not {weight_compression}")
    ratio = source_weight_bytes(request) / weight_compression
    return request.size.of(int(ratio)) if math.isfinite(ratio) else sys.maxsize


def source_weight_bytes(request: Request) -> int:
    """Return the bytes of the weights' values in the source."""
    return sum(m.weight.n_values * np_dtype(m.weight.dtype).itemsize for m in request.menus)
