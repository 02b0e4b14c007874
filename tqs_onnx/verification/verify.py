"""Verifies the file that will be served, not the plan or a simulation of it.

1. The full ONNX checker accepts it (unless it also rejected the source).
2. It loads in a session with stock options, as a server would load it.
3. Every rewritten weight, decoded by the runtime, equals the plan's reference bit for bit; every weight that the plan
   keeps is stored as in the source.
4. The FP32 file and the emitted file are rolled out over the same contexts: drift, and every graph output compared.
5. The FP32 graph with the reference weights, and with the inputs rounded that the plan has rounded, is rolled out too:
   its distance from the file is the runtime's own error (8-bit activations in fused kernels, or a faulty kernel, which
   decoding alone does not show). On a GPU the file runs here under the options of scoring, with TF32 off, and its
   distance from the file as served is reported as `tf32_gap`.
6. All dead weights together, each at its tier, are confirmed to move nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tqs_onnx.emission import PLAN_NOTE, kinds_of_file
from tqs_onnx.rollout.placement import Placement
from tqs_onnx.rollout.plausible import FirstSteps, out_of_range, without_skill
from tqs_onnx.rollout.session import Provider
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.verification.decode import check_decoding
from tqs_onnx.verification.errors import VariableErrors, errors_of
from tqs_onnx.verification.evaluate import Drift, TruthError, drift_between, truth_errors
from tqs_onnx.verification.moments import Comparison, Meter, compared, together
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.timing import Timing
from tqs_onnx.verification.traces import Tracer
from tqs_passes.encode.static import Kind
from tqs_passes.encode.weight import ROUNDED, Form
from tqs_passes.errors import GateError, InputError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model, file_facts, load_model
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import Assignment, Compute, Prediction

#: Drift between the file and its simulation that a correct runtime may add, per profile: absolute, and as a share of
#: the file's own drift. All but `exact` compute with 8-bit activations, 5e-3 per MatMul, and the rollout amplifies
#: that.
_RUNTIME_GAP = {"exact": (2e-3, 0.05), "fast": (0.1, 0.5), "small": (0.1, 0.5), "qdq": (0.1, 0.5)}
#: The same for blocks that compute with 16-bit floats: each operator rounds every value to 11 or 8 bits (at most 2^-11
#: and 2^-8 relative), and the rollout amplifies that. A wrong cast gives a gap of the order of 1.
_HALF_GAP = {"float16": (0.02, 0.5), "bfloat16": (0.1, 0.5)}
#: Drift that all dead weights together may cause.
DEAD_DRIFT_LIMIT = 1e-3
#: Maximum number of dead weights that are rolled out separately to find those that move the trajectory.
_MOST_LOOKED_AT = 32


class Verification(BaseModel):
    """The results of a verification.

    Attributes
    ----------
    bytes_in, bytes_out : int
    compression, weight_compression : float
        Input file over emitted file, and FP32 bytes of the planned weights over their stored bytes.
    planned_bytes : int
        Size that the plan predicted.
    n_decoded : int
        Number of weights whose decoding equals the reference bit for bit.
    drift : Drift
    predicted_drift : float or None
    prediction : Prediction or None
        The predicted drift with its interval, if it was rolled out.
    runtime_gap : float
        Drift between the file and the FP32 graph with the reference weights, both under the options of scoring.
    tf32_gap : float or None
        Drift between the file as served and the file under the options of scoring: TF32, and any kernels that the
        provider prefers; None on the CPU, where both are the same.
    placement : Placement or None
        Where the file's nodes run; None on the CPU, and if the runtime does not say.
    dead_drift : float or None
        Drift of the FP32 graph with only the dead weights at their tiers; None without dead weights.
    outputs : dict of str to float
        ‖Δ‖ / ‖FP32‖ of every graph output outside the trajectory.
    truth : dict of str to TruthError
        Per variable, in the trajectory's units; empty without truth.
    errors : dict of str to VariableErrors
        Per variable, in native units: by step and by context, with intervals.
    n_contexts : int
    on_made_contexts : bool
        Whether nobody measured the contexts: they were made from the model itself.
    bytes_by_kind : dict of str to int
        Bytes of the emitted file: weights, scales, tables, constants, names and graph.
    notes : tuple of str
    timing : Timing or None
        Load time, memory and latency beside those of FP32; None if the file was not timed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    bytes_in: int
    bytes_out: int
    compression: float
    weight_compression: float
    planned_bytes: int
    n_decoded: int
    drift: Drift
    predicted_drift: float | None
    prediction: Prediction | None = None
    runtime_gap: float
    tf32_gap: float | None = None
    placement: Placement | None = None
    dead_drift: float | None
    outputs: dict[str, float]
    truth: dict[str, TruthError]
    errors: dict[str, VariableErrors]
    n_contexts: int
    on_made_contexts: bool = False
    bytes_by_kind: dict[str, int] = Field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()
    timing: Timing | None = None


def verify(subject: Subject, bed: Testbed, tracer: Tracer | None = None) -> Verification:
    """Verify an emitted file (see the module docstring).

    Parameters
    ----------
    subject : Subject
    bed : Testbed
        Testbed of the lifted source, with the evaluation contexts and the σ of the scores.
    tracer : Tracer, optional
        Keeps the forecasts of some contexts.

    Raises
    ------
    GateError
        The file does not decode to the plan's weights, the checker rejects it, the runtime computes other results with
        it, or its dead weights move the trajectory.
    InputError
        A file is missing or does not load, its rollout is not finite, or the plan is for another model.
    """
    require_runs(subject.plan.compute, bed.provider)
    emitted = load_model(subject.emitted)
    _require_plan_of(subject, emitted)
    notes = _check(subject)
    n_decoded = check_decoding(subject, emitted, bed)
    first = FirstSteps()
    placement = bed.placement_of(subject.emitted)
    if placement is not None and placement.on_cpu:
        notes += (str(placement),)
    found, gap, tf32_gap, dead = _roll_out(subject, bed, tracer, first)
    notes += out_of_range(bed.spec, bed.contexts, first)
    known = {name: v.nominal for name, v in found.variables.items() if v.nominal is not None}
    notes += without_skill(bed.spec, bed.contexts, {name: float(s.mae.mean()) for name, s in known.items()})
    drift = drift_between(found, bed.sigma, bed.contexts.source)
    _judge(subject, drift, gap, dead)
    sizes = file_facts(subject.source).n_bytes, file_facts(subject.emitted).n_bytes
    itemsize = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
    stored = sum(w.n_values * itemsize[w.dtype] * w.n_stored for w in subject.survey.weights)
    return Verification(
        bytes_in=sizes[0],
        bytes_out=sizes[1],
        compression=sizes[0] / sizes[1],
        weight_compression=stored / max(subject.plan.weight_bytes, 1),
        planned_bytes=subject.plan.n_bytes,
        n_decoded=n_decoded,
        drift=drift,
        predicted_drift=subject.plan.predicted_drift,
        prediction=subject.plan.prediction,
        runtime_gap=gap,
        tf32_gap=tf32_gap,
        placement=placement,
        dead_drift=dead.drift,
        outputs=found.outputs,
        truth=truth_errors(found, bed.contexts.factors),
        errors=errors_of(found, bed.spec, bed.contexts),
        n_contexts=bed.contexts.n_contexts,
        on_made_contexts=bed.contexts.is_made,
        bytes_by_kind=kinds_of_file(emitted, subject.lifted, subject.plan).to_dict(),
        notes=notes,
    )


def require_runs(compute: Compute | None, provider: Provider) -> None:
    """Refuse blocks of a type that the provider has no kernels for.

    Raises
    ------
    InputError
        The CPU provider does not compute with bfloat16.
    """
    if compute is not None and compute.dtype == "bfloat16" and provider == "cpu":
        raise InputError(
            "blocks that compute with bfloat16 cannot be rolled out on the CPU",
            where="`provider`",
            todo="Set `provider` to cuda on a machine with a GPU, or only allocate and emit here",
        )


def _check(subject: Subject) -> tuple[str, ...]:
    complaint = checker_complaint(subject.emitted)
    if complaint is None:
        return ()
    if checker_complaint(subject.source) is None:
        raise GateError(f"the ONNX checker rejects the emitted file: {complaint}", where=str(subject.emitted))
    return (f"the ONNX checker rejects the source and the emitted file: {complaint}",)


def _require_plan_of(subject: Subject, emitted: Model) -> None:
    noted = {entry.key: entry.value for entry in emitted.proto.metadata_props}.get(PLAN_NOTE)
    if noted is not None and noted != subject.plan.digest():
        raise InputError(
            "the file was emitted from another plan, or by another version",
            where=str(subject.emitted),
            todo="Emit it again from this plan",
        )
    stored = {t.name: tuple(t.dims) for t in subject.lifted.proto.graph.initializer}
    for a in subject.plan.assignments:
        if stored.get(a.weight) != a.shape:
            raise InputError(
                f"the plan is for another model: weight {a.label!r} of shape {list(a.shape)} is not in it",
                where=str(subject.source),
                todo="Give the plan that the file was emitted from",
            )


@dataclass(frozen=True, slots=True)
class _Dead:
    """The joint drift of all weights scored as dead, None if there are none, and which of them move the trajectory."""

    drift: float | None = None
    movers: tuple[str, ...] = ()


def _roll_out(
    subject: Subject, bed: Testbed, tracer: Tracer | None, first: FirstSteps
) -> tuple[Comparison, float, float | None, _Dead]:
    """Return the comparison of the two files, the runtime gap, the TF32 gap, and the drift of the dead weights.

    These are steps 4 to 6 of the module docstring. The rollouts run side by side, one step at a time.
    """
    files = (
        bed.stream_file(subject.source, keep_other=True),
        bed.stream_file(subject.emitted, keep_other=True),
    )
    # The same pieces again on the CPU, where scoring has no options of its own.
    repeatable = None if bed.provider == "cpu" else bed.stream_file(subject.emitted, stock=False)
    between, served = Meter(bed.spec, bed.contexts), Meter(bed.spec, bed.contexts, truth=False)

    def take(nominal: Piece, ours: Piece) -> None:
        between.add(nominal, ours)
        first.add(nominal)
        if tracer is not None:
            tracer.add(nominal, ours)

    stored = subject.survey.by_name()
    planned = {
        a.weight: a
        for a in subject.plan.assignments
        if a.form is not Form.KEEP or (a.weight in stored and a.dtype != stored[a.weight].dtype)
    }
    weights = tuple(w for w in subject.survey.weights if w.name in planned and w.outputs)
    if not weights:
        for nominal, ours in together(*(run() for run in files)):
            take(nominal, ours)
        return between.result(), 0.0, None, _Dead()
    rounded = [planned[w.name] for w in weights if planned[w.name].form in ROUNDED]
    kind: Kind | None = next((r.kind for a in rounded for r in a.ranges), None)
    bed = bed.switched(tuple(a.weight for a in rounded), kind)
    fed = bed.exposed
    replaced = {
        w.name: np.asarray(fed_weight(planned[w.name], fed.values(w), subject.codes.get(w.name)))
        for w in weights
    }
    on = {name: value for a in rounded for name, value in fed.rounding(a).items()}
    simulation = Meter(bed.spec, bed.contexts, truth=False)
    more = () if repeatable is None else (repeatable(),)
    for nominal, ours, simulated, *again in together(
        *(run() for run in files), fed.pieces(replaced | on), *more
    ):
        take(nominal, ours)
        same = again[0] if again else replace(ours, other={})
        simulation.add(replace(simulated, other={}), same)
        if again:
            served.add(replace(ours, other={}), same)
    gap = drift_between(simulation.result(), bed.sigma).total
    tf32_gap = None if repeatable is None else drift_between(served.result(), bed.sigma).total
    dead = {name: value for name, value in replaced.items() if planned[name].dead}
    return between.result(), gap, tf32_gap, _dead(dead, planned, bed)


def _dead(dead: dict[str, NDArray[Any]], planned: Mapping[str, Assignment], bed: Testbed) -> _Dead:
    """Return the joint drift of the dead weights at their tiers, and, if it is too large, which of them move it."""
    if not dead:
        return _Dead()

    def drift(replaced: dict[str, NDArray[Any]]) -> float:
        both = bed.exposed.pieces({}), bed.exposed.pieces(replaced)
        return drift_between(compared(*both, bed.spec, bed.contexts, truth=False), bed.sigma).total

    joint = drift(dead)
    if joint <= DEAD_DRIFT_LIMIT:
        return _Dead(joint)
    looked_at = list(dead)[:_MOST_LOOKED_AT]
    moved = [n for n in looked_at if drift({n: dead[n]}) > DEAD_DRIFT_LIMIT]
    return _Dead(joint, tuple(planned[n].label for n in moved))


def _judge(subject: Subject, drift: Drift, gap: float, dead: _Dead) -> None:
    absolute, share = _RUNTIME_GAP[subject.plan.profile]
    compute = subject.plan.compute
    if compute is not None:
        absolute, share = (
            max(pair) for pair in zip((absolute, share), _HALF_GAP[compute.dtype], strict=True)
        )
    if gap > absolute + share * drift.total:
        raise GateError(
            f"the runtime computes other results than the FP32 graph with this file's weights (drift {gap:.3g})",
            where=str(subject.emitted),
            todo="Set `profile` to exact, or use another runtime version"
            if compute is None
            else "Choose fewer `compute_blocks`, or leave out `compute`",
        )
    if dead.drift is not None and dead.drift > DEAD_DRIFT_LIMIT:
        named = f": {', '.join(dead.movers)}" if dead.movers else ""
        raise GateError(
            f"weights scored as dead move the evaluation contexts (drift {dead.drift:.3g}){named}",
            where=str(subject.emitted),
            todo="Score on more varied contexts, and with the served `batch` if contexts of a batch interact",
        )
