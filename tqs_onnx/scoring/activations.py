"""Measures how the forecast responds when the input of one reader is rounded to 8 bits at every call.

One graph holds a switch before every candidate reader (`tqs_passes.transforms.switch`); each rollout turns one on, all
weights nominal, and is compared with the nominal rollout of the same session, as a weight probe is. Rounding errors of
early and late steps thus count as they do in the forecast. With δx_t the rounding error of the input at step t ::

    A = mean over contexts of ‖ΔY‖² / Σ_t ‖δx_t‖²,    γ as for weights (`measure.gamma`)

Without fixed ranges the scale is that of one call: it covers the whole batch, so responses belong to the batch they
were measured with. With them there is one rollout per reader and way of choosing a range (`tqs_onnx.scoring.ranges`);
readers of one tensor have one range, the one with the least sum of their responses, and a Conv rounds its output too,
behind its Relu if it has one.
An LSTM rounds its states at every step as well; δx holds its inputs only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_onnx.rollout.distance import n_space, ruler_for
from tqs_onnx.rollout.guard import most_in_memory
from tqs_onnx.rollout.held import Held
from tqs_onnx.rollout.injection import GroupSession, switchable
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.scoring.measure.gamma import gammas
from tqs_onnx.scoring.measure.meter import Meter
from tqs_onnx.scoring.ranges import WAYS, ranges_of
from tqs_onnx.scoring.scores import ActivationScore
from tqs_passes.encode.dynamic import rounded_input
from tqs_passes.encode.static import Kind, Range
from tqs_passes.graph.readers import convolved, followers_in, multiplied, recurs, sole_readers
from tqs_passes.weights import Weight

_LOG = logging.getLogger(__name__)


def candidates_of(bed: Testbed, kind: Kind | None = None) -> tuple[Weight, ...]:
    """Return the weights whose reader may round its input: a MatMul or a plain Gemm; also a Conv, or else an LSTM.

    Ranges are fixed in advance for a Conv only, and never for an LSTM.
    """
    readers = sole_readers(bed.model.proto.graph)
    also = recurs if kind is None else convolved
    return tuple(w for w in bed.weights if multiplied(w, readers) or also(w, readers))


def score_activations(
    bed: Testbed, sigma: Mapping[str, float], horizons: tuple[int, ...], kind: Kind | None = None
) -> tuple[ActivationScore, ...]:
    """Score the inputs of all candidate readers; weights whose readers cannot be switched are left out.

    Parameters
    ----------
    bed : Testbed
        Holds the scoring contexts.
    sigma : mapping of str to float
    horizons : tuple of int
        Steps, increasing.
    kind : {"uint8", "int8"} or None
        Integers of ranges that are fixed in advance; None: every call has its own.

    Raises
    ------
    InputError
        The model does not run.
    """
    chosen = candidates_of(bed, kind)
    if not chosen:
        return ()
    source = switchable(bed.model, bed.weights, tuple(w.name for w in chosen), kind)
    session = GroupSession(source, (), bed.spec, bed.contexts, bed.run)
    held = session.hold(most_in_memory(bed.run.max_memory))
    ruler = ruler_for(held.template, bed.spec, bed.contexts, sigma)
    meter = Meter(ruler, n_space(held.template, bed.spec, bed.contexts), held, horizons)
    readers = sole_readers(bed.model.proto.graph)
    probe = _Probe(session, held, meter, horizons)
    weights = [w for w in chosen if w.name in source.switches]
    followers = followers_in(bed.model.proto.graph)
    touched = {w.name: _touched(readers[w.name], followers) for w in weights}
    tensors = tuple(dict.fromkeys(t for w in weights for t in touched[w.name]))
    ranges = {} if kind is None else _chosen(ranges_of(bed, tensors, kind), touched, probe)
    errors = _rounding_errors(bed, tensors, ranges)
    found: list[ActivationScore] = []
    for w in weights:
        row = probe.score(w, tuple(ranges[t] for t in touched[w.name] if ranges), errors[touched[w.name][0]])
        # The two matrices of an LSTM are switched with its W, and share the response.
        also = [v for v in chosen if readers[w.name].op_type == "LSTM" and readers[v.name] is readers[w.name]]
        for v in also or [w]:
            shared = row.energy / max(len(also), 1)
            found.append(row.model_copy(update={"weight": v.name, "label": v.label, "energy": shared}))
    _LOG.info("activations: %d inputs rounded to 8 bits", len(found))
    return tuple(found)


def _touched(reader: onnx.NodeProto, followers: Mapping[str, onnx.NodeProto]) -> tuple[str, ...]:
    """Return the tensors that a reader rounds: its input, and the output of a Conv or of the Relu behind it."""
    if reader.op_type != "Conv":
        return (reader.input[0],)
    last = followers.get(reader.output[0], reader)
    return reader.input[0], last.output[0]


@dataclass(frozen=True, slots=True)
class _Probe:
    """Rolls out with one switch on; keeps what was measured."""

    session: GroupSession
    held: Held
    meter: Meter
    horizons: tuple[int, ...]
    known: dict[tuple[str, tuple[Range, ...]], NDArray[np.float64] | None] = field(
        default_factory=dict[tuple[str, tuple[Range, ...]], "NDArray[np.float64] | None"]
    )

    def energy(self, weight: str, ranges: tuple[Range, ...]) -> NDArray[np.float64] | None:
        """Return ‖ΔY‖² ``[context, horizon]`` with the reader of a weight rounded; None if it is not finite."""
        if (weight, ranges) not in self.known:
            self.known[weight, ranges] = self._measured(self.session.switches[weight].on(ranges))
        return self.known[weight, ranges]

    def _measured(self, switched: Mapping[str, NDArray[Any]]) -> NDArray[np.float64] | None:
        try:
            squares = self.session.prepare(switched).squares(self.held)
        except NonFiniteError:
            return None
        return self.meter.measure(squares, 1.0).energy

    def score(self, weight: Weight, ranges: tuple[Range, ...], delta_sq: float) -> ActivationScore:
        """Return the score of a reader's input; `delta_sq`: energy of its rounding error over all steps."""
        row = ActivationScore(
            weight=weight.name, label=weight.label, delta_norm=float(np.sqrt(delta_sq)), ranges=ranges
        )
        energy = self.energy(weight.name, ranges)
        if energy is None:
            return row.model_copy(update={"finite": False})
        mean = float(energy[:, -1].mean())
        if delta_sq <= 0 or mean <= 0:
            return row.model_copy(update={"energy": mean})
        scored = gammas(energy[None], np.array([delta_sq]), self.horizons)
        update = {"energy": mean, "gamma": scored.gamma, "gamma_task": scored.gamma_task}
        update |= {"amplification": scored.amplification, "growth": scored.growth}
        return row.model_copy(update=update)


def _chosen(
    ways: Mapping[str, tuple[Range, ...]], touched: Mapping[str, Sequence[str]], probe: _Probe
) -> dict[str, Range]:
    """Return the range of every tensor: the way with the least response, summed over its readers."""
    total = {t: np.zeros(len(WAYS)) for t in ways}
    for weight, tensors in touched.items():
        for i in range(len(WAYS)):
            energy = probe.energy(weight, tuple(ways[t][i] for t in tensors))
            for t in tensors:
                total[t][i] += np.inf if energy is None else float(energy[:, -1].mean())
    best = {t: int(np.argmin(total[t])) for t in ways}
    counts = ", ".join(f"{name} {sum(i == k for i in best.values())}" for k, name in enumerate(WAYS))
    _LOG.info("ranges of %d activations, chosen by rollout: %s", len(ways), counts)
    return {t: ways[t][i] for t, i in best.items()}


def _rounding_errors(bed: Testbed, tensors: tuple[str, ...], ranges: Mapping[str, Range]) -> dict[str, float]:
    """Return Σ over steps of ‖δx‖² of every tensor along the nominal rollout, mean over contexts."""
    seen = bed.capturing(tensors)
    outputs = list(seen.outputs.values())
    total = dict.fromkeys(tensors, 0.0)
    for _, made in seen.engine.walk(seen.nominal, outputs):
        for tensor in tensors:
            x = made[seen.outputs[tensor]].numpy()
            rounded = ranges[tensor].rounded(x) if tensor in ranges else rounded_input(x)
            total[tensor] += float(np.sum((rounded.astype(np.float64) - x) ** 2))
    return {name: energy / bed.contexts.n_contexts for name, energy in total.items()}
