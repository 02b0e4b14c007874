"""The sweep: perturb one weight, roll out, compare; for every weight.

A weight that reaches no trajectory output is `off-trajectory` and not rolled out; a probe of zero is `unprobed`;
one that makes the rollout NaN or infinite is `unstable`; one that moves nothing beyond the noise floor (the
difference of two nominal runs of the same session) is `dead`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.context_set import Contexts
from tqs_onnx.rollout.session import Provider, runtime_version
from tqs_onnx.rollout.spec import RolloutSpec, content_hash
from tqs_onnx.rollout.trajectory import NonFiniteError, Trajectory
from tqs_onnx.rollout.variables import sigma
from tqs_onnx.score.divergence import Ruler, n_space, ruler_for
from tqs_onnx.score.engine import ExposedWeights, Injection
from tqs_onnx.score.gamma import EPSILON, default_horizons, gammas
from tqs_onnx.score.probe import Probe, perturbed
from tqs_onnx.score.store import ProbeFacts, ResponsePoint, Scores, Status, WeightScore
from tqs_passes.model_io import Model
from tqs_passes.weights import Survey, Weight

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """How a sweep is run.

    Parameters
    ----------
    probe : Probe
    response_bits : tuple of int
        Further widths at which the response is measured: coarse rounding moves a rollout out of its linear range,
        and the allocator must know what it costs there.
    horizons : tuple of int
        Steps at which γ(T) is taken; empty: the default schedule.
    units : {"std", "raw"}
    provider : str
    batch : int or None
        Most contexts a chunk.
    threads : int
    """

    probe: Probe = field(default_factory=Probe)
    response_bits: tuple[int, ...] = (4, 2)
    horizons: tuple[int, ...] = ()
    units: Literal["std", "raw"] = "std"
    provider: Provider = "cpu"
    batch: int | None = None
    threads: int = 0


def on_trajectory(weight: Weight, spec: RolloutSpec) -> bool:
    """Whether a weight reaches the trajectory, directly or through an output that is fed back."""
    wanted = {*spec.trajectory.outputs, *(f.output for f in spec.feedback)}
    return not wanted.isdisjoint(weight.outputs)


def contexts_hash(contexts: Contexts) -> str:
    """Return the SHA-256 of the contexts' arrays and labels."""
    digest = hashlib.sha256()
    for name in sorted(contexts.arrays):
        array = np.ascontiguousarray(contexts.arrays[name])
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    digest.update("\0".join(contexts.series or ()).encode())
    return digest.hexdigest()


def sweep(
    model: Model,
    survey: Survey,
    spec: RolloutSpec,
    contexts: Contexts,
    source_sha256: str,
    options: SweepOptions,
    progress: Progress | None = None,
) -> Scores:
    """Score every weight of a lifted model.

    Parameters
    ----------
    model : Model
        Lifted model.
    survey : Survey
        Its weights.
    spec : RolloutSpec
    contexts : Contexts
        The scoring contexts.
    source_sha256 : str
        Digest of the file the model was read from.
    options : SweepOptions
    progress : callable, optional
        Called with (done, total, label) after each weight.

    Raises
    ------
    InputError
        The model does not run, or its nominal rollout is not finite.
    """
    rolled = tuple(w for w in survey.weights if on_trajectory(w, spec))
    injection = ExposedWeights(
        model, rolled, spec, contexts, provider=options.provider, batch=options.batch, threads=options.threads
    )
    nominal = injection.run({})
    again = injection.run({})
    scale = sigma(spec, contexts, nominal.outputs).values
    if options.units == "raw":
        scale = dict.fromkeys(scale, 1.0)
    meter = _Meter(
        ruler_for(nominal.outputs, spec, contexts, scale),
        n_space(nominal.outputs, spec, contexts),
        nominal,
        options.horizons or default_horizons(spec.rollout.steps),
    )
    floor = float(meter.energy(again)[:, -1].max())
    scores: list[WeightScore] = []
    for done, weight in enumerate(survey.weights, 1):
        if on_trajectory(weight, spec):
            scores.append(_score(weight, injection, meter, options, floor))
        else:
            scores.append(_blank(weight, Status.OFF_TRAJECTORY))
        if progress is not None:
            progress(done, len(survey.weights), weight.label)
    probe = options.probe
    return Scores(
        source_sha256=source_sha256,
        rollout_sha256=content_hash(spec),
        contexts_sha256=contexts_hash(contexts),
        provider=options.provider,
        runtime=runtime_version(),
        probe=ProbeFacts(
            kind=probe.kind,
            bits=probe.bits,
            response_bits=options.response_bits,
            per_channel=probe.per_channel,
            draws=probe.n_draws,
            seed=probe.seed,
        ),
        horizons=meter.horizons,
        units=options.units,
        sigma=scale,
        n_contexts=contexts.n_contexts,
        n_values=meter.ruler.n_values,
        noise_floor=floor,
        weights=tuple(scores),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Meter:
    """Cumulative energies of a trajectory against the nominal one, at each horizon."""

    ruler: Ruler
    spaces: dict[str, int]
    nominal: Trajectory
    horizons: tuple[int, ...]

    @property
    def zero(self) -> NDArray[np.float64]:
        """The energies of a rollout that nothing moved."""
        return np.zeros((self.ruler.contexts.n_contexts, len(self.horizons)))

    def energy(self, trajectory: Trajectory) -> NDArray[np.float64]:
        """Return e_s(T), float64 ``[contexts, horizons]``."""
        squares = self.ruler.squares(trajectory.outputs, self.nominal.outputs)
        running = np.cumsum(self.ruler.energy(squares, self.spaces), axis=1)
        ends = [self.nominal.time_after[t] for t in self.horizons]
        return running[:, [end - 1 for end in ends]]


def _score(
    weight: Weight, injection: Injection, meter: _Meter, options: SweepOptions, floor: float
) -> WeightScore:
    primary = _measured(weight, injection, meter, options.probe)
    if primary is None:
        return _blank(weight, Status.UNSTABLE)
    energy, delta_sq = primary
    response = {float(delta_sq.mean()): _amplification(energy, delta_sq)}
    for bits in options.response_bits:
        further = _measured(weight, injection, meter, replace(options.probe, bits=bits, draws=1))
        if further is None:
            return _blank(weight, Status.UNSTABLE)
        response[float(further[1].mean())] = _amplification(*further)
    points = tuple(ResponsePoint(delta_sq=d, amplification=a) for d, a in sorted(response.items()) if d > 0.0)
    draws = options.probe.n_draws
    if not delta_sq.all():
        return _blank(weight, Status.UNPROBED).model_copy(update={"response": points})
    norm = float(np.sqrt(delta_sq.mean()))
    if float(energy[..., -1].max()) <= floor and all(p.amplification * p.delta_sq <= floor for p in points):
        return _blank(weight, Status.DEAD).model_copy(update={"delta_norm": norm, "draws": draws})
    g = gammas(energy, delta_sq, meter.horizons)
    return _blank(weight, Status.ALIVE).model_copy(
        update={
            "gamma": g.gamma,
            "gamma_stderr": g.gamma_stderr,
            "gamma_task": g.gamma_task,
            "gamma_task_mean": g.gamma_task_mean,
            "a_max": g.a_max,
            "amplification": g.amplification,
            "growth": g.growth,
            "delta_norm": norm,
            "draws": draws,
            "response": points,
        }
    )


def _measured(
    weight: Weight, injection: Injection, meter: _Meter, probe: Probe
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return energies ``[draws, contexts, horizons]`` and ‖δθ‖² ``[draws]``; None if a rollout is not finite."""
    theta = injection.values(weight)
    energies: list[NDArray[np.float64]] = []
    deltas: list[float] = []
    for draw in range(probe.n_draws):
        moved, delta_sq = perturbed(theta, probe, weight.name, draw, weight.channel_axis)
        deltas.append(delta_sq)
        if delta_sq == 0.0:
            energies.append(meter.zero)
            continue
        try:
            energies.append(meter.energy(injection.run({weight.name: moved})))
        except NonFiniteError:
            return None
    return np.stack(energies), np.array(deltas)


def _amplification(energy: NDArray[np.float64], delta_sq: NDArray[np.float64]) -> float:
    return float(np.mean(energy[..., -1] / (delta_sq[:, None] + EPSILON)))


def _blank(weight: Weight, status: Status) -> WeightScore:
    readers = tuple(f"{r.op_type}:{r.input_index}" for r in weight.readers)
    return WeightScore(
        weight=weight.name, label=weight.label, shape=weight.shape, status=status, readers=readers
    )
