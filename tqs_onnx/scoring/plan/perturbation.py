"""What one rollout perturbs: a weight, or a block of weights; and every rollout that a sweep needs.

A target's rollouts are those of the probe, one a draw, and one for each further width of the response. They are a
function of the job: neither the order in which they run, nor who runs them, changes what is measured.
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
    """One perturbed rollout: what is perturbed, by which probe, and which draw of it.

    Parameters
    ----------
    weights : tuple of Weight
        Perturbed at the same time.
    probe : Probe
    draw : int
    """

    weights: tuple[Weight, ...]
    probe: Probe
    draw: int

    def key(self, job: str) -> str:
        """Return the digest under which its measurement is kept: the job and all that is particular to it."""
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
    """Return the rollouts of a target: the draws of the probe first, then the response, in the order given."""
    primary = [Rollout(weights, probe, draw) for draw in range(probe.n_draws)]
    further = [Rollout(weights, replace(probe, bits=bits, draws=1), 0) for bits in response_bits]
    return (*primary, *further)
