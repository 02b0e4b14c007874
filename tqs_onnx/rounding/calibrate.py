"""Accumulates the statistics of weight inputs over a rollout, as the sums that rounding needs.

The FP32 model follows its own trajectory. At every step the rounded model gets the same state (teacher forcing), so the
two sets of inputs of a reader can be paired row by row; free rollouts would drift apart and could not be paired ::

    state_t ──FP32 weights────▶ Xf   (and state_t+1)
        └─────rounded so far──▶ X         H = Σ Xᵀ X,   D = Σ (Xf - X)ᵀ X      rows are inputs, float64

Weights are inputs of the sessions; `relay` runs the rounded model. Sums are updated call by call, so memory is bounded
by one call. The FP32 activations are kept between weights as far as they fit in `KEPT_BYTES`; for further calls another
relay computes them, and if not even the states fit, the FP32 model is rolled out for each weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.session import Value
from tqs_onnx.rollout.testbed import Capturing, Testbed
from tqs_onnx.rounding.compensate import Matrix
from tqs_onnx.rounding.relay import Relay
from tqs_onnx.rounding.uses import Use, Uses, uses_of
from tqs_passes.errors import InputError
from tqs_passes.files.tensors import tensor_array
from tqs_passes.grids.grid import Codes, Scales
from tqs_passes.plan.assigned import round_weight
from tqs_passes.plan.plan import Assignment

#: Maximum bytes of FP32 activations and states kept between weights.
KEPT_BYTES = 512 << 20
#: Bytes that one call may be expected to show of all tensors together; beyond it they are never asked for at once.
MOST_SHOWN_BYTES = 2 << 30
#: Maximum bytes of codes kept that the weights alone determine, and of scales without their codes.
_MOST_PLAIN_BYTES = 64 << 20


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
    """One call of the FP32 model: its inputs, and the inputs of the readers by name, as far as they are kept."""

    inputs: dict[str, Value]
    seen: dict[str, NDArray[Any]]


class Calibration:
    """Runs the FP32 and the rounded model side by side over contexts; the session opens when first needed.

    Parameters
    ----------
    bed : Testbed
        Holds the calibration contexts. A model with a fixed batch size repeats the last context to fill a call.
    """

    def __init__(self, bed: Testbed) -> None:
        self.shapes = {w.name: w.shape for w in bed.weights}
        n_readers = {w.name: len(w.readers) for w in bed.weights}
        self.uses: dict[str, Uses] = uses_of(bed.model.proto.graph, self.shapes, n_readers)
        every = (use for u in self.uses.values() for use in u.uses)
        self._tensors = tuple(dict.fromkeys(name for use in every for name in self._captured(use)))
        self._bed = bed
        self._kept: tuple[_Call, ...] | None = None
        self._too_big = False
        self._on_device: dict[str, tuple[NDArray[Any], Value]] = {}
        self._plain: dict[tuple[object, ...], Codes] = {}
        self._scales: dict[tuple[object, ...], Scales] = {}

    def _captured(self, use: Use) -> tuple[str, ...]:
        """Return the tensors of a use that a session has to show; weights are known."""
        return (use.activation, *(name for name in use.also if name and name not in self.shapes))

    @cached_property
    def _seeing(self) -> Capturing:
        return self._bed.capturing(self._tensors)

    @cached_property
    def _relay(self) -> Relay:
        """Runs the rounded model."""
        return Relay(self._bed.legs(self._tensors, self._cuts()), self._seeing.nominal, self._constants)

    @cached_property
    def _fp32_relay(self) -> Relay:
        return Relay(self._bed.legs(self._tensors, self._cuts()), self._seeing.nominal, self._constants)

    @cached_property
    def _constants(self) -> dict[str, Value]:
        """The inputs of readers that are stored in the model and are no weights."""
        model = self._bed.model
        stored = {t.name: t for t in model.proto.graph.initializer if t.name not in self._seeing.nominal}
        found = {n: tensor_array(stored[n], model.folder) for n in self._tensors if n in stored}
        return {name: self._seeing.session.value(array) for name, array in found.items()}

    def _cuts(self) -> tuple[int, ...]:
        """Return the nodes before which inputs of weights are complete; weights with the same inputs share one."""
        found: list[int] = []
        last: set[str] = set()
        for uses in sorted(self.uses.values(), key=lambda u: u.position):
            read = {name for use in uses.uses for name in self._captured(use)}
            if read and read != last:
                found.append(uses.position)
                last = read
        return tuple(dict.fromkeys(found))

    @property
    def threads(self) -> int:
        """Threads that rollouts and linear algebra may use; 0: the libraries' choice."""
        return self._bed.run.threads

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Nominal values of the weights."""
        return self._seeing.arrays

    def statistics(
        self, weight: str, replaced: Mapping[str, NDArray[Any]], *, paired: bool = True
    ) -> Statistics:
        """Return the sums for one weight.

        Parameters
        ----------
        weight : str
            A weight that has uses.
        replaced : mapping of str to NDArray
            Decoded values of the weights rounded so far. If there are none, both sides are the same: the FP32 side is
            not run again, and D is zero.
        paired : bool
            Whether D is needed; GPTQ does not use it. If not, D is zero.

        Raises
        ------
        InputError
            The weight has no uses, or no context ran them (a Loop of no turns).
        """
        uses, shape = self.uses[weight].uses, self.shapes[weight]
        seeing = self._seeing
        tensors = tuple(dict.fromkeys(name for use in uses for name in self._captured(use)))
        changed = {n: self._placed(n, a) for n, a in replaced.items() if n in seeing.nominal}
        weights = {**seeing.nominal, **changed}
        sums: tuple[Matrix, Matrix] | None = None
        n_rows = 0
        for number, call in enumerate(self._calls(weight, tensors)):
            ours = call.seen
            if changed:
                ours = _on_host(self._relay.seen(number, call.inputs, weights, weight, tensors))
            for use in uses:
                x = self._rows(use, shape, ours, replaced)
                with np.errstate(over="ignore", invalid="ignore"):  # a non-finite H is reported later
                    h = np.swapaxes(x, 1, 2) @ x
                    sums = (np.zeros_like(h), np.zeros_like(h)) if sums is None else sums
                    sums[0][...] += h
                    if paired and changed:
                        gap = self._rows(use, shape, call.seen, {}) - x
                        sums[1][...] += np.swapaxes(gap, 1, 2) @ x
                n_rows += x.shape[1]
        if sums is None or not n_rows:
            raise InputError(
                "no input reaches this weight on the calibration contexts",
                where=weight,
                todo="Give contexts on which the model uses it",
            )
        return Statistics(*sums, n_rows)

    def plain(self, a: Assignment) -> Codes:
        """Return the codes of an assignment rounded without data.

        Plans and settings that share it find its scales once; its levels are kept too, as far as they fit.
        """
        key = (a.weight, a.tier, a.grid, a.axis, a.half_scales, a.rows, a.group, a.rounding)
        if key not in self._plain:
            codes = round_weight(self.arrays[a.weight], a, self._scales.get(key))
            n_bytes = sum(s.nbytes for s in self._scales.values()) + codes.scales.nbytes
            if n_bytes <= _MOST_PLAIN_BYTES:
                self._scales[key] = codes.scales
            if sum(c.levels.nbytes for c in self._plain.values()) + codes.levels.nbytes > _MOST_PLAIN_BYTES:
                return codes
            self._plain[key] = codes
        return self._plain[key]

    def forget(self) -> None:
        """Free what is kept of the rounded model; its weights, among others."""
        self._on_device.clear()
        for name in ("_relay", "_fp32_relay"):
            if name in self.__dict__:
                self.__dict__[name].forget()

    def _placed(self, name: str, array: NDArray[Any]) -> Value:
        """Return a replaced weight on the device: the same value for the same array."""
        held = self._on_device.get(name)
        if held is None or held[0] is not array:
            held = self._on_device[name] = array, self._seeing.session.value(array)
        return held[1]

    def _rows(
        self,
        use: Use,
        shape: tuple[int, ...],
        seen: Mapping[str, NDArray[Any]],
        replaced: Mapping[str, NDArray[Any]],
    ) -> Matrix:
        """Return the rows of a use, from the tensors that a session showed and the weights as they are."""

        def read(name: str) -> NDArray[Any] | None:
            if not name:
                return None
            return replaced.get(name, self.arrays[name]) if name in self.shapes else seen[name]

        return use.view.rows(seen[use.activation], shape, *map(read, use.also))

    def _calls(self, weight: str, tensors: tuple[str, ...]) -> Iterable[_Call]:
        """Yield the calls of the FP32 model, with at least these tensors, the inputs of a weight."""
        if self._kept is None and not self._too_big:
            self._kept = self._walked(tensors)
            self._too_big = self._kept is None
        if self._kept is None:
            yield from self._walk(tensors)
            return
        nominal = self._seeing.nominal
        for number, call in enumerate(self._kept):
            if call.seen:
                yield call
            else:
                made = self._fp32_relay.seen(number, call.inputs, nominal, weight, tensors)
                yield _Call(call.inputs, _on_host(made))

    def _walked(self, tensors: tuple[str, ...]) -> tuple[_Call, ...] | None:
        """Return all calls, with all tensors while they fit; None if not even the inputs of the calls fit."""
        every = () if self._expected_bytes(tensors) > MOST_SHOWN_BYTES else self._tensors
        kept: list[_Call] = []
        n_inputs = n_seen = 0
        for call in self._walk(every):
            n_inputs += sum(value.n_bytes for value in call.inputs.values())
            n_seen += sum(a.nbytes for a in call.seen.values())
            if n_inputs > KEPT_BYTES:
                return None
            kept.append(call if n_seen <= KEPT_BYTES else _Call(call.inputs, {}))
        return tuple(kept)

    def _expected_bytes(self, tensors: tuple[str, ...]) -> float:
        """Return about how many bytes one call shows if it shows all tensors, from those of a few of them."""
        first = next(iter(self._walk(tensors)))
        return sum(a.nbytes for a in first.seen.values()) * len(self._tensors) / max(1, len(tensors))

    def _walk(self, tensors: tuple[str, ...]) -> Iterable[_Call]:
        names = self._seeing.outputs
        wanted = [names[tensor] for tensor in tensors]
        for inputs, outputs in self._seeing.engine.walk(self._seeing.nominal, wanted):
            yield _Call(inputs, {tensor: outputs[names[tensor]].numpy() for tensor in tensors})


def _on_host(values: Mapping[str, Value]) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in values.items()}
