"""Rolls out the targets of one session, one after another, and measures them.

A thread computes the next perturbation while a rollout runs, because rounding a big weight takes as long as a short
rollout. At most two perturbed targets are in memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tqs_onnx.rollout.distance import n_space, ruler_for
from tqs_onnx.rollout.injection import Exposable, GroupSession, Injection, Ready, Rebuilt, exposable
from tqs_onnx.rollout.placement import Placement
from tqs_onnx.rollout.plausible import FirstSteps, out_of_range
from tqs_onnx.rollout.spread import sigma_of
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.scoring.measure.early_stop import watcher
from tqs_onnx.scoring.measure.meter import Measurement, Meter
from tqs_onnx.scoring.plan.perturbation import Rollout
from tqs_onnx.scoring.plan.probe import perturbed
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan

#: Up to this many values, perturbing takes less time than switching to another thread.
_QUICK_VALUES = 1 << 17


class Frame(BaseModel):
    """Facts about a job's nominal rollout, the same for all its sessions.

    Attributes
    ----------
    sigma : dict of str to float
        The σ_v of every variable; divergences are in these units, unless they are in the data's own.
    n_values : int
        Number of values in one context's trajectory.
    notes : tuple of str
        Notes on the nominal rollout (see `tqs_onnx.rollout.plausible`).
    placement : Placement or None
        Where its nodes ran; None on the CPU, and if the runtime does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma: dict[str, float]
    n_values: int
    notes: tuple[str, ...] = ()
    placement: Placement | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """A session, the meter that compares with its nominal rollout, the σ of that rollout, and notes on it."""

    injection: Injection
    meter: Meter
    sigma: dict[str, float]
    notes: tuple[str, ...] = ()
    placement: Placement | None = None


def exposable_of(plan: SweepPlan) -> Exposable:
    """Return the plan's model, prepared for all its sessions."""
    return exposable(plan.model, (w for group in range(plan.n_sessions) for w in plan.weights_of(group)))


def open_station(plan: SweepPlan, source: Exposable, group: int, frame: Frame | None = None) -> Station:
    """Open the session of a group and roll it out once.

    Raises
    ------
    InputError
        The model does not run, or its nominal rollout is not finite.
    """
    run = replace(plan.run, batch=plan.batch)
    weights = plan.weights_of(group)
    injection: Injection
    if plan.how == "rebuild":
        injection = Rebuilt(source, plan.spec, plan.contexts, run)
    else:
        injection = GroupSession(
            *(source, weights, plan.spec, plan.contexts, run),
            prefix=plan.prefix,
        )
    held = injection.hold(plan.most_held_bytes)

    def nominal() -> Iterator[Piece]:
        return injection.kept_pieces(held)

    found = sigma_of(plan.spec, plan.contexts, held, nominal) if frame is None else frame.sigma
    raw = plan.options.units == "raw"
    scale = dict.fromkeys(found, 1.0) if raw else found
    ruler = replace(ruler_for(held.template, plan.spec, plan.contexts, scale), balanced=not raw)
    spaces = n_space(held.template, plan.spec, plan.contexts)
    first = FirstSteps()
    for piece in nominal():
        first.add(piece)
    notes = out_of_range(plan.spec, plan.contexts, first)
    return Station(
        injection, Meter(ruler, spaces, held, plan.horizons), dict(found), notes, injection.placement
    )


def frame_of(station: Station) -> Frame:
    """Return the facts about a job's nominal rollout, from its first session."""
    ruler = station.meter.ruler
    return Frame(
        sigma=station.sigma,
        n_values=ruler.n_values,
        notes=station.notes,
        placement=station.placement,
    )


def perturbation(rollout: Rollout, injection: Injection) -> tuple[dict[str, NDArray[Any]], float]:
    """Return the perturbed weights of a rollout, and ‖δθ‖² over all of them."""
    replaced: dict[str, NDArray[Any]] = {}
    total = 0.0
    for weight in rollout.weights:
        theta = injection.values(weight)
        moved, delta_sq = perturbed(theta, rollout.probe, weight.name, rollout.draw, weight.channel_axis)
        total += delta_sq
        if delta_sq > 0.0:
            replaced[weight.name] = moved
    return replaced, total


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRollout:
    """A rollout with its perturbation, ready to run; `ready` is None for a zero probe."""

    rollout: Rollout
    delta_sq: float
    ready: Ready | None


def prepare(rollout: Rollout, injection: Injection) -> PreparedRollout:
    """Compute the perturbation of a rollout, and prepare the rollout."""
    replaced, delta_sq = perturbation(rollout, injection)
    return PreparedRollout(rollout, delta_sq, injection.prepare(replaced) if replaced else None)


def prepared(rollouts: Iterable[Rollout], injection: Injection) -> Generator[PreparedRollout]:
    """Yield each rollout, prepared; a thread prepares the next one meanwhile, unless that takes less than a switch."""
    todo: Iterator[Rollout] = iter(rollouts)
    with ThreadPoolExecutor(1) as pool:
        pending = _prepared_soon(next(todo, None), injection, pool)
        while pending is not None:
            done = pending.result() if isinstance(pending, Future) else pending
            pending = _prepared_soon(next(todo, None), injection, pool)
            yield done


def _prepared_soon(
    rollout: Rollout | None, injection: Injection, pool: ThreadPoolExecutor
) -> Future[PreparedRollout] | PreparedRollout | None:
    if rollout is None:
        return None
    if injection.builds or sum(w.n_values for w in rollout.weights) > _QUICK_VALUES:
        return pool.submit(prepare, rollout, injection)
    return prepare(rollout, injection)


def measured(plan: SweepPlan, station: Station, prepared: PreparedRollout) -> Measurement:
    """Roll out and measure; a zero probe is not rolled out."""
    meter, delta_sq = station.meter, prepared.delta_sq
    if prepared.ready is None:
        return meter.blank(0.0)
    rule = plan.options.early_stop
    watch = None if rule is None else watcher(meter, delta_sq, rule)
    try:
        return meter.measure(prepared.ready.squares(meter.held, watch=watch), delta_sq)
    except NonFiniteError:
        return meter.blank(delta_sq, finite=False)
