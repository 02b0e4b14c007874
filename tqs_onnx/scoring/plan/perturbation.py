"""The targets of perturbation, a weight or a block of weights each, and all rollouts that a sweep needs.

A target's rollouts are one for each draw of the probe, and one for each additional width of the response. They are a
function of the job: neither their order nor the worker that runs them changes the results.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from tqs_onnx.scoring.plan.probe import Probe, ProbeKind
from tqs_passes.weights import Weight


@dataclass(frozen=True, slots=True)
class Perturbation:
    """Weights that are perturbed together.

    Parameters
    ----------
    name : str
        Name of the weight, or of the block.
    weights : tuple of Weight
    """

    name: str
    weights: tuple[Weight, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One perturbed rollout: the perturbed weights, the probe, and the draw of the probe.

    Parameters
    ----------
    weights : tuple of Weight
        Weights that are perturbed together.
    probe : Probe
    draw : int
    """

    weights: tuple[Weight, ...]
    probe: Probe
    draw: int

    def key(self, job: str) -> str:
        """Return the digest under which the measurement is stored: the job and everything specific to this rollout."""
        gauss = self.probe.kind is ProbeKind.GAUSS
        facts = {
            "job": job,
            "weights": sorted(w.name for w in self.weights),
            "kind": self.probe.kind.value,
            "bits": self.probe.bits,
            "per_channel": self.probe.per_channel,
            "draw": self.draw,
            "seed": self.probe.seed if gauss else 0,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def rollouts_of(
    weights: tuple[Weight, ...], probe: Probe, response_bits: tuple[int, ...]
) -> tuple[Rollout, ...]:
    """Return the rollouts of a target: the draws of the probe first, then the response in the given order."""
    primary = [Rollout(weights, probe, draw) for draw in range(probe.n_draws)]
    further = [Rollout(weights, replace(probe, bits=bits, draws=1), 0) for bits in response_bits]
    return (*primary, *further)
