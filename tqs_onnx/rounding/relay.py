"""Runs the rounded model part by part: weights are rounded in graph order, so what lies before them need not run again.

    call 0:  part 0 ─▶ part 1 ─▶ ▪ part 2        ▪ kept: the values that the parts from here on read
    call 1:  part 0 ─▶ part 1 ─▶ ▪ part 2        a rounded weight of part 2 moves the mark behind it

Rounding n weights costs about one run of the model in place of n. A call whose values do not fit is run from its start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tqs_onnx.rollout.session import Value
from tqs_onnx.rollout.testbed import Leg

#: Maximum bytes of values kept between weights, over all calls.
KEPT_BYTES = 512 << 20


@dataclass(slots=True)
class _Place:
    """How far a call has come: the next part, the values that it and later parts read, and the weights used so far."""

    part: int = 0
    values: dict[str, Value] = field(default_factory=dict[str, Value])
    fed: dict[str, Value] = field(default_factory=dict[str, Value])


class Relay:
    """Runs calls of one model with weights that change in graph order.

    Parameters
    ----------
    legs : sequence of Leg
    weights : collection of str
        The inputs of the parts that are weights.
    constants : mapping of str to Value
        Tensors stored in the model that may be wanted.
    """

    def __init__(
        self,
        legs: Sequence[Leg],
        weights: Collection[str],
        constants: Mapping[str, Value] = MappingProxyType({}),
    ) -> None:
        self._legs = tuple(legs)
        self._maker = {name: i for i, leg in enumerate(legs) for name in leg.makes}
        self._weights = tuple(tuple(n for n in leg.reads if n in weights) for leg in legs)
        self._first = {name: i for i in reversed(range(len(legs))) for name in self._weights[i]}
        self._live = [frozenset(n for leg in legs[i:] for n in leg.reads) for i in range(len(legs) + 1)]
        self._constants = constants
        self._places: dict[int, _Place] = {}

    def seen(
        self,
        call: int,
        inputs: Mapping[str, Value],
        weights: Mapping[str, Value],
        weight: str,
        wanted: Collection[str],
    ) -> dict[str, Value]:
        """Return tensors of one call, and keep what is computed before the parts that read `weight`.

        Parameters
        ----------
        call : int
            Number of the call; a call always has the same inputs.
        inputs : mapping of str to Value
            Inputs of the model other than weights.
        weights : mapping of str to Value
            All weights; one that has changed since the last time is another `Value`.
        weight : str
            The weight that will change next.
        wanted : collection of str
            Inputs, weights, constants, or tensors that some part makes.

        Raises
        ------
        InputError
            The model fails.
        """
        place = self._places.pop(call, None) or _Place()
        target = self._before(weight, wanted)
        if place.part > target or any(weights[n] is not value for n, value in place.fed.items()):
            place = _Place()
        while place.part < target:
            self._advance(place, inputs, weights)
        self._keep(call, place)
        ahead = _Place(place.part, dict(place.values))
        last = max((self._maker[n] for n in wanted if n in self._maker and n not in place.values), default=-1)
        found: dict[str, Value] = {**self._constants, **inputs, **weights, **place.values}
        while ahead.part <= last:
            found |= self._advance(ahead, inputs, weights)
        return {name: found[name] for name in wanted}

    def forget(self) -> None:
        """Free what is kept; the next tensors are computed from the start."""
        self._places.clear()

    def _before(self, weight: str, wanted: Collection[str]) -> int:
        """Return the part up to which everything is computed before a weight matters and a wanted tensor is lost."""
        part = self._first.get(weight, len(self._legs))
        lost = (self._maker[n] for n in wanted if n in self._maker and n not in self._live[part])
        return min(part, *lost, len(self._legs))

    def _advance(
        self, place: _Place, inputs: Mapping[str, Value], weights: Mapping[str, Value]
    ) -> dict[str, Value]:
        """Run the next part of a call, and return what it makes."""
        leg = self._legs[place.part]
        given = {
            n: place.values[n] if n in self._maker else weights[n] if n in weights else inputs[n]
            for n in leg.reads
        }
        made = leg.session.run(given, leg.makes, where="calibration")
        place.fed.update((n, weights[n]) for n in self._weights[place.part])
        place.part += 1
        live = self._live[place.part]
        place.values = {n: v for n, v in {**place.values, **made}.items() if n in live}
        return made

    def _keep(self, call: int, place: _Place) -> None:
        kept = (value for other in self._places.values() for value in other.values.values())
        n_bytes = sum(value.n_bytes for value in (*kept, *place.values.values()))
        if n_bytes <= KEPT_BYTES:
            self._places[call] = place
