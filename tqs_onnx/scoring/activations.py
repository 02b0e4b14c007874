"""Measures how the forecast responds when the input of one reader is rounded to 8 bits at every call.

One graph holds a switch before every candidate reader (`tqs_passes.transforms.switch`); each rollout turns one on, all
weights nominal, and is compared with the nominal rollout of the same session, as a weight probe is. Rounding errors of
early and late steps thus count as they do in the forecast. With δx_t the rounding error of the input at step t ::

    A = mean over contexts of ‖ΔY‖² / Σ_t ‖δx_t‖²,    γ as for weights (`measure.gamma`)

The scale is that of one call: it covers the whole batch, so responses belong to the batch they were measured with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from tqs_onnx.rollout.distance import n_space, ruler_for
from tqs_onnx.rollout.injection import ON, GroupSession, switchable
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.scoring.measure.gamma import gammas
from tqs_onnx.scoring.measure.meter import Meter
from tqs_onnx.scoring.scores import ActivationScore
from tqs_passes.encode.dynamic import rounded_input
from tqs_passes.graph.readers import multiplied, sole_readers
from tqs_passes.weights import Weight

_LOG = logging.getLogger(__name__)


def candidates_of(bed: Testbed) -> tuple[Weight, ...]:
    """Return the weights whose reader may round its input: the only reader is a MatMul or a plain Gemm."""
    readers = sole_readers(bed.model.proto.graph)
    return tuple(w for w in bed.weights if multiplied(w, readers))


def score_activations(
    bed: Testbed, sigma: Mapping[str, float], horizons: tuple[int, ...]
) -> tuple[ActivationScore, ...]:
    """Score the inputs of all candidate readers; weights whose readers cannot be switched are left out.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts.
    sigma : mapping of str to float
    horizons : tuple of int
        Steps, increasing.

    Raises
    ------
    InputError
        The model does not run.
    """
    chosen = candidates_of(bed)
    if not chosen:
        return ()
    source = switchable(bed.model, bed.weights, tuple(w.name for w in chosen))
    session = GroupSession(source, (), bed.spec, bed.contexts, bed.run)
    held = session.hold()
    ruler = ruler_for(held.template, bed.spec, bed.contexts, sigma)
    meter = Meter(ruler, n_space(held.template, bed.spec, bed.contexts), held, horizons)
    readers = sole_readers(bed.model.proto.graph)
    inputs = {w.name: readers[w.name].input[0] for w in chosen if w.name in source.switches}
    errors = _rounding_errors(bed, tuple(dict.fromkeys(inputs.values())))
    found: list[ActivationScore] = []
    for weight in chosen:
        if weight.name not in inputs:
            continue
        delta_sq = errors[inputs[weight.name]]
        row = ActivationScore(weight=weight.name, label=weight.label, delta_norm=float(np.sqrt(delta_sq)))
        try:
            squares = session.prepare({source.switches[weight.name]: ON}).squares(held)
        except NonFiniteError:
            found.append(row.model_copy(update={"finite": False}))
            continue
        energy = meter.measure(squares, delta_sq).energy
        mean = float(energy[:, -1].mean())
        if delta_sq <= 0 or mean <= 0:
            found.append(row.model_copy(update={"energy": mean}))
            continue
        scored = gammas(energy[None], np.array([delta_sq]), horizons)
        update = {"energy": mean, "gamma": scored.gamma, "gamma_task": scored.gamma_task}
        update |= {"amplification": scored.amplification, "growth": scored.growth}
        found.append(row.model_copy(update=update))
    _LOG.info("activations: %d inputs rounded to 8 bits, one rollout each", len(found))
    return tuple(found)


def _rounding_errors(bed: Testbed, tensors: tuple[str, ...]) -> dict[str, float]:
    """Return Σ over steps of ‖δx‖² of every tensor along the nominal rollout, mean over contexts."""
    seen = bed.capturing(tensors)
    outputs = list(seen.outputs.values())
    total = dict.fromkeys(tensors, 0.0)
    for _, made in seen.engine.walk(seen.nominal, outputs):
        for tensor in tensors:
            x = made[seen.outputs[tensor]].numpy()
            total[tensor] += float(np.sum((rounded_input(x).astype(np.float64) - x) ** 2))
    return {name: energy / bed.contexts.n_contexts for name, energy in total.items()}
