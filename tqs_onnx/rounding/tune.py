"""Choose how integers are chosen, on contexts held out of the calibration.

QEP's correction with the published setting (damping 1, strength 0.5) is often far from the best, and a comparison with
it would be unfair; nor is one method the best for every model and width. The last quarter of the contexts is held out
(see `rollout.holdout`); each setting is calibrated on the others, the held-out ones are rolled out with the weights it
gives, and the least drift wins. The model is never written, the evaluation contexts never seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tqs_onnx.rollout.contexts.context_set import Contexts, held_out
from tqs_onnx.rollout.distance import drift_of, n_space, ruler_for
from tqs_onnx.rollout.injection import ExposedWeights
from tqs_onnx.rollout.options import Provider
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.rounding.assign import RoundingOptions, decoded_weights, round_plan
from tqs_onnx.rounding.calibrate import Calibration
from tqs_passes.files.model import Model
from tqs_passes.plan.plan import Plan
from tqs_passes.weights import Weight

DAMPS = (0.01, 0.1, 1.0)
STRENGTHS = (0.5, 1.0)
_HELD_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Where:
    """What is rolled out, and how.

    Parameters
    ----------
    model : Model
        Lifted model.
    weights : tuple of Weight
    spec : RolloutSpec
    contexts : Contexts
        For calibration.
    sigma : dict of str to float
    provider : str
    batch : int or None
    threads : int
    """

    model: Model
    weights: tuple[Weight, ...]
    spec: RolloutSpec
    contexts: Contexts
    sigma: dict[str, float]
    provider: Provider = "cpu"
    batch: int | None = None
    threads: int = 0

    def calibration(self, contexts: Contexts | None = None) -> Calibration:
        """Return a calibration on these contexts, all by default."""
        return Calibration(
            self.model,
            self.weights,
            self.spec,
            contexts or self.contexts,
            provider=self.provider,
            batch=self.batch,
            threads=self.threads,
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and the drift it gave on the held-out contexts; infinite when the rollout was not finite."""

    setting: RoundingOptions
    drift: float


def qep_settings(options: RoundingOptions) -> tuple[RoundingOptions, ...]:
    """Return QEP with every damping and strength tried."""
    return tuple(
        replace(options, method="qep", qep_damp=damp, qep_strength=strength)
        for damp in DAMPS
        for strength in STRENGTHS
    )


class Tuner:
    """Holds the two sets of contexts, so that several plans share what was captured.

    Parameters
    ----------
    where : Where
        With a single context the settings are judged on what they were calibrated on.
    """

    def __init__(self, where: Where) -> None:
        kept, self._held = held_out(where.contexts, _HELD_SHARE)
        self._calibration = where.calibration(kept)
        self._where = where
        self._rollout = ExposedWeights(
            where.model,
            where.weights,
            where.spec,
            self._held,
            provider=where.provider,
            batch=where.batch,
            threads=where.threads,
        )
        self._nominal = self._rollout.run({})

    def best(
        self, plan: Plan, settings: Sequence[RoundingOptions], say: Callable[[str], None]
    ) -> tuple[RoundingOptions, tuple[Trial, ...]]:
        """Return the setting of least held-out drift, the first of several, and every trial.

        Parameters
        ----------
        plan : Plan
        settings : sequence of RoundingOptions
        say : callable
            Called with one line a trial.
        """
        trials: list[Trial] = []
        for setting in settings:
            trials.append(Trial(setting, self.drift(plan, setting)))
            say(f"{setting.title}: held-out drift {trials[-1].drift:.4g}")
        return min(trials, key=lambda t: t.drift).setting, tuple(trials)

    def drift(self, plan: Plan, options: RoundingOptions) -> float:
        """Return the drift on the held-out contexts of a plan rounded on the others."""
        assigned = round_plan(plan, self._calibration, options)
        try:
            ours = self._rollout.run(decoded_weights(assigned, self._calibration.arrays))
        except NonFiniteError:
            return float("inf")
        ruler = ruler_for(self._nominal.outputs, self._where.spec, self._held, self._where.sigma)
        spaces = n_space(self._nominal.outputs, self._where.spec, self._held)
        return drift_of(ruler.squares(ours.outputs, self._nominal.outputs), spaces)
