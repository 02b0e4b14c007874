"""Builds the input of allocation: candidates with exact bytes, the size of the rest of the file, and a byte budget."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

from onnx.external_data_helper import uses_external_data

from tqs_onnx.allocation.costing import Request
from tqs_onnx.allocation.file_size import FileSize
from tqs_onnx.allocation.tier_set import TierSet, refuse
from tqs_onnx.emission import PreparedModel, placeholder_metadata, prepared
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.context_set import Contexts, contexts_hash
from tqs_onnx.rollout.spec.spec import RolloutSpec, content_hash
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.version import VERSION
from tqs_passes.encode.planes import MIN_OPSET
from tqs_passes.encode.weight import INT4_OPSET
from tqs_passes.errors import InfeasibleError, InputError
from tqs_passes.files.debug_notes import kept_size
from tqs_passes.files.model import Model
from tqs_passes.files.wire import field_size
from tqs_passes.graph.names import opset_of
from tqs_passes.grids.scales import DEFAULT_ROUNDING, FreeRounding
from tqs_passes.plan.candidates import Menu, kitchen_of, menus
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.plan import ServingTarget
from tqs_passes.plan.targets import Serving
from tqs_passes.survey.bytes_by_kind import bytes_by_kind
from tqs_passes.tier import Tier
from tqs_passes.transforms.skeleton import skeleton
from tqs_passes.transforms.slim.slimming import Slimming, slimming_of


def request_for(
    source: Source,
    scores: Scores,
    profile: Profile,
    tiers: TierSet | tuple[Tier, ...],
    serving: Serving | None = None,
    rounding: FreeRounding = DEFAULT_ROUNDING,
    *,
    rounded: bool = False,
) -> Request:
    """Return the input of allocation: candidates with exact bytes and errors, scores and sizes; see `menus_of`.

    Raises
    ------
    InputError
        The scores are for another model.
    """
    require_scores_of(source, scores)
    serving = settled_serving(source, (serving or Serving()).under(profile))
    ready = prepared_source(source, serving)
    return Request(
        menus_of(source, ready, profile, tiers, serving, rounding, rounded=rounded),
        scores,
        size_of(source, ready),
        profile,
        serving,
    )


def require_scores_of(source: Source, scores: Scores) -> None:
    """Refuse scores of another model.

    Raises
    ------
    InputError
        The digests differ, or the scored weights differ from those of the model.
    """
    names = {w.name for w in source.survey.weights}
    if scores.source_sha256 != source.sha256 or {s.weight for s in scores.weights} != names:
        raise InputError(
            "the scores are for another model", where=str(source.path), todo="Run tqs score for this model"
        )


def require_contexts_of(scores: Scores, spec: RolloutSpec, contexts: Contexts) -> None:
    """Refuse contexts other than those the scores were measured on: they could overlap with evaluation data.

    If the rollout spec differs, nothing is refused, because it may need other arrays.

    Raises
    ------
    InputError
        The contexts differ from those.
    """
    if content_hash(spec) == scores.rollout_sha256 and contexts_hash(contexts) != scores.contexts_sha256:
        raise InputError(
            "are not the contexts that the scores were measured on",
            where=contexts.source,
            todo="Give the same `contexts` and `max_contexts` as to tqs score",
        )


def settled_serving(source: Source, serving: Serving) -> Serving:
    """Return what a file is made for, with the automatic choices made: whether names and graph are slimmed."""
    found = slimming_of(source.lifted, serving.names, serving.graph)
    return replace(serving, names="short" if found.names else "keep", graph="slim" if found.graph else "keep")


def prepared_source(source: Source, serving: Serving) -> PreparedModel:
    """Return the prepared lifted model of a source (see `emission.prepared`)."""
    labels = {w.name: w.label for w in source.survey.weights}
    settled = settled_serving(source, serving)
    slimming = Slimming(settled.names == "short", settled.graph == "slim", settled.pinned)
    return prepared(
        source.lifted, labels, serving.constants_as_stored, serving.opset, serving.compute, slimming
    )


def menus_of(
    source: Source,
    ready: PreparedModel,
    profile: Profile,
    tiers: TierSet | tuple[Tier, ...],
    serving: Serving,
    rounding: FreeRounding = DEFAULT_ROUNDING,
    *,
    rounded: bool = False,
) -> tuple[Menu, ...]:
    """Return every way to store each weight of a source, with the errors of this rounding; `ready`: its prepared model.

    With `rounded`, readers that round their inputs to 8 bits are offered too (forms `dynamic` and `static`).

    Raises
    ------
    InputError
        A rule of the tier set matches no weight, or leaves a weight without a tier; the weights are named.
    """
    tier_set = tiers if isinstance(tiers, TierSet) else TierSet(tiers)
    weights = tuple(replace(w, dtype=ready.computed.get(w.name, w.dtype)) for w in source.survey.weights)
    exceptions = tier_set.exceptions(weights)
    kitchen = kitchen_of(ready.model, profile, serving, rounding, rounded=rounded)
    found = menus(kitchen, weights, tier_set.tiers, exceptions)
    refuse([m.weight for m in found if not m.candidates], "the rules leave no tier that can be stored")
    return found


def size_of(source: Source, ready: PreparedModel) -> FileSize:
    """Return the sizes of everything in an emitted file besides its weights; `ready` is the source's prepared model."""
    names = ready.model.stored_names(w.name for w in source.survey.weights)
    bare = skeleton(ready.model, names, placeholder_metadata(), VERSION)
    # A tensor in an external file will be stored in this file.
    moved = sum(
        field_size(kept_size(t)) - field_size(t.ByteSize())
        for t in bare.graph.initializer
        if uses_external_data(t)
    )
    graph = bare.graph.ByteSize()
    whole = bare.ByteSize() - field_size(graph) + field_size(graph + moved)
    kinds = bytes_by_kind(Model(bare, ready.model.folder), frozenset())
    return FileSize(source.facts.n_bytes, whole, graph + moved, kinds.constants, kinds.names)


@contextmanager
def hinting(source: Source, serving: Serving, tiers: TierSet) -> Generator[None]:
    """Add to an infeasible budget what the target could do at another opset.

    Raises
    ------
    InfeasibleError
        As it was raised, with the hint.
    """
    try:
        yield
    except InfeasibleError as error:
        opset = serving.opset or opset_of(source.lifted.proto)
        if (
            serving.target is not ServingTarget.TENSORRT
            or opset >= INT4_OPSET
            or Tier.INT4 not in tiers.tiers
        ):
            raise
        more = f"set `opset` to {INT4_OPSET}, from which TensorRT reads INT4: the model has {opset}"
        todo = f"{error.todo}, or {more}"
        raise InfeasibleError(
            error.what, smallest_bytes=error.smallest_bytes, where=error.where, todo=todo
        ) from error


def note_of_opset(source: Source, serving: Serving) -> str | None:
    """Return a note if the model's opset has no operators to decode integers, else None."""
    opset = serving.opset or opset_of(source.lifted.proto)
    if opset >= MIN_OPSET:
        return None
    return f"opset {opset} has no integer tiers, which need {MIN_OPSET} or more; set `opset` to 13 to convert the model"
