"""What a job can choose from: the ways to store each weight, the bytes of the rest of the file, and the budget.

The stages before a plan is made: `offer` first, `ranged` when the scores are known, `timed` if a speedup is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqs_onnx.allocation.file_size import FileSize, require_feasible
from tqs_onnx.allocation.measure_times import measure_times
from tqs_onnx.allocation.offers import offers_before_scoring
from tqs_onnx.allocation.request import (
    hinting,
    menus_of,
    note_of_opset,
    prepared_source,
    settled_serving,
    size_of,
)
from tqs_onnx.allocation.times import TimeTable, read_times
from tqs_onnx.emission import stayed
from tqs_onnx.inputs.source import Source
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.rollout.saturation import saturates
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.score import on_trajectory
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.verify import require_runs
from tqs_passes.encode.static import Kind
from tqs_passes.encode.weight import ROUNDED
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.plan.candidates import Menu, unsaturated, with_ranges
from tqs_passes.plan.plan import ServingTarget
from tqs_passes.plan.targets import Serving

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """The choices for a model and the byte budget.

    Parameters
    ----------
    menus : tuple of Menu
        Every way to store each weight.
    size : FileSize
        The bytes of everything in the file besides its weights.
    max_bytes : int
        The budget of the whole file.
    serving : Serving
        The serving options with the automatic choices made.
    """

    menus: tuple[Menu, ...]
    size: FileSize
    max_bytes: int
    serving: Serving


def offer(source: Source, options: QuantizeOptions) -> Offer:
    """Return the choices and the byte budget; log what the user should know about them.

    Raises
    ------
    InputError
        No budget is given, the model cannot be prepared as requested, or a rule leaves a weight without a tier.
    """
    rounded = options.plan.rounds_inputs
    if options.plan.speedup is None:
        options.budget.require()
    serving = settled_serving(source, options.serving.under(options.profile))
    ready = prepared_source(source, serving)
    rounding = options.refine.rounding.free
    # Beside inputs whose rounding is measured, none is rounded unmeasured, as `fast` has it before fused products.
    profile = "exact" if rounded and options.profile == "fast" else options.profile
    menus = menus_of(source, ready, profile, options.tiers, serving, rounding, rounded=rounded)
    on_cpu = serving.target is ServingTarget.ORT_CPU and resolve_provider(options.run.provider) == "cpu"
    if rounded and on_cpu and saturates():
        _LOG.info(
            "note: this processor adds products of 8 by 8 bits in 16 bits: readers that round their inputs get weights "
            "of at most 7 bits"
        )
        menus = tuple(unsaturated(m) for m in menus)
    if ready.skipped:
        _LOG.info(stayed(ready.skipped))
    if lacking := note_of_opset(source, serving):
        _LOG.info("note: %s", lacking)
    size = size_of(source, ready)
    given = options.budget.is_given
    return Offer(menus, size, options.budget.n_bytes(menus, size) if given else size.source_bytes, serving)


def ranged(offered: Offer, scores: Scores) -> Offer:
    """Return an offer whose candidates with fixed ranges have those of the scores; without them they are left out."""
    known = {s.weight: s.ranges for s in scores.activations}
    menus = tuple(with_ranges(m, known.get(m.weight.name, ())) for m in offered.menus)
    return replace(offered, menus=menus)


def rounding_inputs(bed: Testbed, menus: Sequence[Menu]) -> Testbed:
    """Return a testbed that can round the inputs of those weights whose menus offer it."""
    found = [[c.assignment for c in m.candidates if c.assignment.form in ROUNDED] for m in menus]
    kind: Kind | None = next((r.kind for offer in found for a in offer for r in a.ranges), None)
    return bed.switched(tuple(offer[0].weight for offer in found if offer), kind)


def timed(
    source: Source, offered: Offer, options: QuantizeOptions, bed: Testbed, path: Path | None
) -> TimeTable | None:
    """Return the times of the forms on this machine; None unless a `speedup` needs them.

    Parameters
    ----------
    source : Source
    offered : Offer
    options : QuantizeOptions
    bed : Testbed
    path : Path or None
        The table is read from this file if it exists, so that a repeated job gives the same plan; else it is measured,
        and written there.

    Raises
    ------
    InputError
        The file is not a table, or one of another model or batch.
    """
    if options.plan.speedup is None:
        return None
    if path is not None and path.exists():
        times = read_times(path)
        if times.source_sha256 != source.sha256 or times.threads != options.run.threads:
            raise InputError(
                "was measured for another model or with other threads",
                where=str(path),
                todo="Remove it, to measure again",
            )
        _LOG.info("times: read from %s", path)
        return times
    times = measure_times(source, offered.menus, offered.size, options.profile, offered.serving, bed)
    _LOG.info(
        "times: FP32 takes %.3g ms at batch %d, the fastest forms together %.2f of it",
        *(times.fp32_ms, times.batch, times.checked),
    )
    if path is not None:
        write_text(path, times.to_json())
    return times


def require_room(offered: Offer, source: Source, spec: RolloutSpec, options: QuantizeOptions) -> None:
    """Refuse a budget that no file can meet, before any rollout.

    Raises
    ------
    InputError
        The provider has no kernels for blocks that compute in 16-bit floats.
    InfeasibleError
        No file that small can be written; the error holds the smallest size.
    """
    require_runs(options.serving.compute, resolve_provider(options.run.provider))
    weights = source.survey.weights
    off = frozenset(w.name for w in weights if w.outputs and not on_trajectory(w, spec))
    offers = offers_before_scoring(offered.menus, off, options.planning)
    with hinting(source, options.serving, options.tiers):
        require_feasible(offered.size, offers, offered.max_bytes)
