"""The objective `measured`: the rollout's response to one weight at a tier, as it will be rounded, all others FP32.

A full table would cost one scoring run per tier. Most of its entries cannot be chosen, so measuring is lazy ::

    solve with what is known ──▶ chosen choices that were not measured? ──none──▶ done
          ▲                                       │
          └───────── measure them and their next finer and next coarser tier

Choices not measured yet are estimated as amplification times error energy, corrected by the measurements of the same
weight (`allocation.responses`). Choices that together make up less than 1 % of the predicted cost keep the estimate.
With all other weights in FP32 there is no upstream error to correct, so GPTQ, GPTAQ and QEP give the same result and
share their responses.

Responses are kept in the store of the scores, under a separate job: another budget or a resumed run measures only
what is missing. Deterministic for one runtime, thread count and batch size, whatever the store holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.allocation.choice import Bundle, storage_key
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.allocation.objective import Objective
from tqs_onnx.allocation.offers import Entry, entries_of
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.refinement.instruments import Instruments
from tqs_onnx.rollout.contexts.context_set import contexts_hash
from tqs_onnx.rollout.distance import n_space
from tqs_onnx.rollout.spec.spec import content_hash
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.rounding.assign import DATA_AWARE, Alone, RoundingOptions
from tqs_onnx.scoring.measure.meter import Measurement, Meter
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.fingerprint import job_facts, job_id
from tqs_passes.encode.weight import Form
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import Plan

_LOG = logging.getLogger(__name__)
#: Choices that together have less than this share of the predicted cost are not measured.
NEGLIGIBLE = 0.01
_MOST_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """The result of the lazy search.

    Parameters
    ----------
    plan : Plan
    request : Request
        The request with all responses known now, for the next budget.
    measured : int
        Number of choices measured in this search.
    reused : int
        Number of choices that the search asked for and found in the store.
    """

    plan: Plan
    request: Request
    measured: int
    reused: int


class Responder:
    """Measures the rollout's response to choices; sessions open only when something must be measured.

    Parameters
    ----------
    instruments : Instruments
    rounding : RoundingOptions
    source_sha256 : str
    results : Results
        Store of the responses.
    """

    def __init__(
        self, instruments: Instruments, rounding: RoundingOptions, source_sha256: str, results: Results
    ) -> None:
        bed, calibrating = instruments.bed, instruments.calibrating
        method = "gptq" if rounding.method in DATA_AWARE else rounding.method
        self._instruments = instruments
        self._rounding = replace(rounding, method=method)
        self._results = results
        by_data = method == "gptq"
        calibration = calibrating.contexts if by_data and calibrating is not bed else None
        facts = job_facts(
            provider=bed.provider,
            source_sha256=source_sha256,
            rollout_sha256=content_hash(bed.spec),
            contexts_sha256=contexts_hash(bed.contexts),
            sigma=bed.sigma,
            batch=bed.run.batch,
            response=1,
            rounding=[method, rounding.scales, rounding.damp, rounding.act_order] if by_data else [method],
            calibration=None if calibration is None else contexts_hash(calibration),
        )
        text = json.dumps(facts, sort_keys=True)
        self._job = job_id(json.loads(text))
        results.put_frame(self._job, text, "{}")
        self._open: _Open | None = None

    def known(self, bundles: Iterable[Bundle]) -> dict[str, float]:
        """Return the stored responses, by `Bundle.key`; infinite if the rollout was not finite."""
        keys = {self._key(bundle): bundle.key for bundle in bundles}
        kept = self._results.read(keys)
        return {
            name: float(kept[key].energy[:, -1].mean()) if kept[key].finite else math.inf
            for key, name in keys.items()
            if key in kept
        }

    def measure(self, bundles: Iterable[Bundle]) -> dict[str, float]:
        """Measure and store responses; choices of one weight should be consecutive, because they share its inputs."""
        todo = list(bundles)
        if not todo:
            return {}
        if self._open is None:
            self._open = _Open(self._instruments, self._rounding)
        for bundle in todo:
            self._results.put(self._job, [(self._key(bundle), self._open.measured(bundle))])
        return self.known(todo)

    def _key(self, bundle: Bundle) -> str:
        return hashlib.sha256(f"{self._job}\0{bundle.key}".encode()).hexdigest()


class _Open:
    """The sessions that measuring needs, and a nominal rollout."""

    def __init__(self, instruments: Instruments, rounding: RoundingOptions) -> None:
        bed = instruments.bed
        self._calibration = instruments.calibration
        self._alone = Alone(self._calibration, rounding)
        self._exposed = bed.exposed
        spaces = n_space(bed.hold().template, bed.spec, bed.contexts)
        self._meter = Meter(bed.ruler, spaces, bed.hold(), (bed.spec.rollout.steps,))

    def measured(self, bundle: Bundle) -> Measurement:
        """Roll out with the members of a choice replaced."""
        replaced: dict[str, NDArray[Any]] = {}
        delta_sq = 0.0
        for a in (c.assignment for c in bundle.candidates):
            values = self._calibration.arrays.get(a.weight)
            if values is None or (a.form is Form.KEEP and a.dtype == values.dtype.name):
                continue
            decoded = self._alone.decoded(a) if a.tier.is_integer else np.asarray(fed_weight(a, values))
            replaced[a.weight] = decoded
            delta_sq += float(np.sum((decoded.astype(np.float64) - values.astype(np.float64)) ** 2))
            replaced |= self._exposed.rounding(a)
        try:
            return self._meter.measure(self._exposed.prepare(replaced).squares(self._meter.held), delta_sq)
        except NonFiniteError:
            return self._meter.blank(delta_sq, finite=False)


def plan_measured(
    request: Request, max_bytes: int, options: PlanOptions, responder: Responder
) -> MeasuredPlan:
    """Return the plan of least measured cost (see the module docstring).

    Parameters
    ----------
    request : Request
    max_bytes : int
    options : PlanOptions
        Options with the objective `measured`.
    responder : Responder

    Raises
    ------
    InfeasibleError
        No file that small can be written.
    """
    every = entries_of(replace(request, responses={}), options)
    # What is stored is not looked at before the search asks for it: the plan must not depend on what ran before.
    responses = dict(request.responses)
    reused = n_measured = 0
    for _ in range(_MOST_ROUNDS):
        request = replace(request, responses=dict(responses))
        plan = plan_within(request, max_bytes, options)
        wanted = _wanted(plan, every, responses)
        if not wanted:
            break
        known = responder.known(wanted)
        lacking = [b for b in wanted if b.key not in known]
        responses |= known | responder.measure(lacking)
        reused += len(known)
        n_measured += len(lacking)
    else:
        request = replace(request, responses=dict(responses))
        plan = plan_within(request, max_bytes, options)
    n_choices = sum(len(e.bundles) for e in every)
    _LOG.info("measured the responses of %d choices; %d were stored; %d exist", n_measured, reused, n_choices)
    return MeasuredPlan(plan, request, n_measured, reused)


def planned(
    request: Request,
    max_bytes: int,
    options: PlanOptions,
    instruments: Instruments,
    rounding: RoundingOptions,
    results: Results,
) -> tuple[Plan, Request]:
    """Return a plan for any objective, and the request with the new measurements (see `plan_measured`)."""
    if options.aim is not Objective.MEASURED:
        return plan_within(request, max_bytes, options), request
    responder = Responder(instruments, rounding, request.scores.source_sha256, results)
    found = plan_measured(request, max_bytes, options, responder)
    return found.plan, found.request


def _wanted(plan: Plan, entries: Sequence[Entry], responses: dict[str, float]) -> list[Bundle]:
    """Return the choices to measure next: the unmeasured choices of a plan and their neighbours, in entry order."""
    chosen = {a.weight: a for a in plan.assignments}
    held = [[chosen[m.weight.name] for m in e.menus] for e in entries]
    costs = [sum(a.cost for a in group) for group in held]
    unknown = [i for i, group in enumerate(held) if costs[i] > 0 and storage_key(group) not in responses]
    room = NEGLIGIBLE * sum(costs)
    lacking: list[int] = []
    for i in sorted(unknown, key=lambda i: (costs[i], i)):
        room -= costs[i]
        if room < 0:
            lacking.append(i)
    found: list[Bundle] = []
    for i in sorted(lacking):
        bundles = entries[i].bundles
        key = storage_key(held[i])
        at = next((j for j, b in enumerate(bundles) if b.key == key), None)
        near = [at] if at is not None else []
        if at is not None:
            near += _neighbours(bundles, at)
        found += [bundles[j] for j in near if bundles[j].key not in responses and bundles[j].error_energy > 0]
    return found


def _neighbours(bundles: Sequence[Bundle], at: int) -> list[int]:
    """Return the nearest choices of the next finer and the next coarser tier."""
    finer = (j for j in range(at - 1, -1, -1) if bundles[j].tier is not bundles[at].tier)
    coarser = (j for j in range(at + 1, len(bundles)) if bundles[j].tier is not bundles[at].tier)
    return [j for j in (next(finer, None), next(coarser, None)) if j is not None]
