"""What weights are multiplied with during a rollout, as the sums that roundings need.

The FP32 model walks its own trajectory; at every step the rounded model is given the same state (teacher forcing), so
that the two sets of inputs of a reader are paired row by row: free runs would drift apart and pair nothing ::

    state_t ──FP32 weights────▶ Xf   (and state_t+1)
        └─────rounded so far──▶ X         H = Σ Xᵀ X,   D = Σ (Xf - X)ᵀ X      rows are inputs, float64

Both runs use one session whose weights are inputs. Sums are taken call by call, so memory is bounded by one call; the
FP32 side is kept between weights while it fits `KEPT_BYTES`, else it is walked again for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import Provider, SessionOptions
from tqs_onnx.rollout.session import Value, open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rounding.compensate import Matrix
from tqs_onnx.rounding.view import Uses, uses_of
from tqs_passes.files.model import Model, serialize
from tqs_passes.transforms.capture import Capture, captured_names
from tqs_passes.transforms.expose import Expose, weight_values
from tqs_passes.weights import Weight

#: Most bytes of FP32 activations and states kept between weights.
KEPT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Sums over all uses, steps and contexts.

    Parameters
    ----------
    H, D : float64 array [group, in, in]
        See the module docstring.
    n_rows : int
        Rows of one group.
    """

    H: Matrix
    D: Matrix
    n_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One call of the FP32 model: what it was fed, and what its readers saw."""

    inputs: dict[str, Value]
    seen: dict[str, NDArray[Any]]


class Calibration:
    """Runs the FP32 and the rounded model side by side over contexts.

    Parameters
    ----------
    model : Model
        Lifted model.
    weights : tuple of Weight
        Those that may be rounded.
    spec : RolloutSpec
    contexts : Contexts
    provider : str
    batch : int or None
        Most contexts a call. A model of fixed batch size repeats the last context to fill a call.
    threads : int

    Raises
    ------
    InputError
        The model does not load.
    """

    def __init__(
        self,
        model: Model,
        weights: tuple[Weight, ...],
        spec: RolloutSpec,
        contexts: Contexts,
        *,
        provider: Provider = "cpu",
        batch: int | None = None,
        threads: int = 0,
    ) -> None:
        names = tuple(w.name for w in weights)
        self.shapes = {w.name: w.shape for w in weights}
        self.uses: dict[str, Uses] = uses_of(
            model.proto.graph, self.shapes, {w.name: len(w.readers) for w in weights}
        )
        tensors = tuple(dict.fromkeys(use.activation for u in self.uses.values() for use in u.uses))
        exposed = Expose(names).apply(model)
        self._outputs = captured_names(exposed.model, tensors)
        visible = Capture(tensors).apply(exposed.model)
        self._session = open_session(
            serialize(visible.model.proto), provider=provider, options=SessionOptions(threads=threads)
        )
        self._engine = Engine(self._session, spec, contexts, batch=batch)
        dtypes = {w.name: w.dtype for w in weights}
        self.arrays = {name: weight_values(model, name, dtypes[name]) for name in exposed.changed}
        self._nominal = {name: self._session.value(array) for name, array in self.arrays.items()}
        self._kept: tuple[_Call, ...] | None = None
        self._too_big = False

    def statistics(self, weight: str, replaced: Mapping[str, NDArray[Any]]) -> Statistics:
        """Return the sums for one weight.

        Parameters
        ----------
        weight : str
            One with uses.
        replaced : mapping of str to NDArray
            Decoded values of the weights rounded so far.
        """
        uses, shape = self.uses[weight].uses, self.shapes[weight]
        wanted = [self._outputs[name] for name in dict.fromkeys(use.activation for use in uses)]
        changed = {n: self._session.value(a) for n, a in replaced.items() if n in self._nominal}
        weights = {**self._nominal, **changed}
        sums: tuple[Matrix, Matrix] | None = None
        n_rows = 0
        for call in self._calls(wanted):
            ours = self._session.run({**call.inputs, **weights}, wanted, where="calibration")
            for use in uses:
                output = self._outputs[use.activation]
                x = use.view.rows(ours[output].numpy(), shape)
                gap = use.view.rows(call.seen[output], shape) - x
                xt = np.swapaxes(x, 1, 2)
                with np.errstate(over="ignore", invalid="ignore"):  # an H that is not finite is reported
                    h, d = xt @ x, np.swapaxes(gap, 1, 2) @ x
                sums = (h, d) if sums is None else (sums[0] + h, sums[1] + d)
                n_rows += x.shape[1]
        assert sums is not None
        return Statistics(*sums, n_rows)

    def _calls(self, wanted: list[str]) -> Iterable[_Call]:
        """Return the calls of the FP32 model, with at least the wanted outputs."""
        if self._kept is not None:
            return self._kept
        if not self._too_big:
            kept: list[_Call] = []
            size = 0
            for call in self._walk(list(self._outputs.values())):
                kept.append(call)
                size += sum(a.nbytes for a in call.seen.values())
                if size > KEPT_BYTES:
                    self._too_big = True
                    break
            else:
                self._kept = tuple(kept)
                return self._kept
        return self._walk(wanted)

    def _walk(self, wanted: list[str]) -> Iterable[_Call]:
        for inputs, outputs in self._engine.walk(self._nominal, wanted):
            yield _Call(inputs, {name: outputs[name].numpy() for name in wanted})
