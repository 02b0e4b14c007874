"""Separate constants that belong to the data from weights: means and deviations of variables, tables of counts.

Only tensors directly at a model input or output are examined. A tensor is excluded only for signs that training does
not produce: the name of a statistic; a positive divisor of the raw input, or the centre subtracted before it; the same
values again at an output; whole numbers that only divide.

Constant fields that are concatenated to the inputs (Pangu-Weather's maps and heights) stay weights: nothing in the
graph distinguishes them from trained ones, and their bytes are worth saving (66 MB of the released file).
"""

from __future__ import annotations

import re

import numpy as np

from tqs_passes.graph import content
from tqs_passes.graph.axes import MOVERS
from tqs_passes.graph.flow import Flow
from tqs_passes.graph.scope import Site, Value, Wiring
from tqs_passes.graph.trace import Reading, StoredTensor

_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
_MOST_HOPS = 4
_STATISTIC = re.compile(
    r"(^|[._/:])(\w+_)?"
    r"(means?|stds?|stddev|deviations?|variance|locs?|locations?|mu|sigma|changes?|tendenc(y|ies))(_\d+)?$",
    re.I,
)


class DataConstants:
    """Finds the reason why a stored float tensor belongs to the data.

    Parameters
    ----------
    wiring : Wiring
    flow : Flow
        Both of the candidates' model.
    """

    def __init__(self, wiring: Wiring, flow: Flow) -> None:
        self._wiring = wiring
        self._flow = flow
        self._near_input = self._affine_of_inputs()
        #: Heads of the statistics found at inputs: the same values at an output reverse the normalisation.
        self._of_inputs: set[bytes] = set()

    def reason(self, candidate: StoredTensor) -> str | None:
        """Return why a candidate is not a weight, in words for the user; None when it may be one."""
        if not candidate.readings:
            return None
        if self._is_statistic(candidate):
            return "normalisation constant of a model input or output"
        if all(_divides(r) for r in candidate.readings) and _counts(candidate):
            return "a table of counts: whole numbers that only divide"
        return None

    def _is_statistic(self, candidate: StoredTensor) -> bool:
        """Return whether the tensor only normalises inputs or outputs and looks like a statistic.

        It looks like one if its name says so, or if it is positive and divides an input.
        """
        if not all(self._normalises(r) for r in candidate.readings):
            return False
        if _STATISTIC.search(candidate.name) or content.head(_flat(candidate)) in self._of_inputs:
            return True
        if all(self._centres(r) for r in candidate.readings):
            self._of_inputs.add(content.head(_flat(candidate)))
            return True
        if not any(_divides(r) and r.site.inputs[0] in self._near_input for r in candidate.readings):
            return False
        if not np.all(content.as_float(candidate.array()) > 0):
            return False
        self._of_inputs.add(content.head(_flat(candidate)))
        return True

    def _centres(self, reading: Reading) -> bool:
        """Return whether a reader subtracts the tensor from a raw input, then only divides by a stored value."""
        site = reading.site
        if site.op != "Sub" or reading.reader.input_index != 1 or site.inputs[0] not in self._near_input:
            return False
        value = (site.scope, site.node.output[0])
        following = self._wiring.consumers.get(value, ())
        divisors = [
            self._wiring.sites[i].inputs[1]
            for i, position in following
            if self._wiring.sites[i].op == "Div" and position == 0
        ]
        stored = all(d is not None and d not in self._flow.dynamic for d in divisors)
        return bool(divisors) and len(divisors) == len(following) and stored

    def _affine_of_inputs(self) -> set[Value]:
        """Return the model's inputs and the values computed from them by moving, adding and scaling with constants."""
        near: set[Value] = {value for value in self._flow.sources if value[0] == 0}
        for site in self._wiring.sites:
            if not site.inputs or site.scope:
                continue
            fed = [value for value in site.inputs if value is not None and value in self._flow.dynamic]
            simple = site.op in _AFFINE or site.op in MOVERS
            if simple and len(fed) == 1 and fed[0] in near:
                near.update((site.scope, name) for name in site.node.output if name)
        return near

    def _normalises(self, reading: Reading) -> bool:
        site = reading.site
        if site.op not in _AFFINE or site.scope:
            return False
        others = [v for i, v in enumerate(site.inputs) if i != reading.reader.input_index and v is not None]
        if any(value in self._near_input for value in others):
            return True
        ends: list[Value] = [(site.scope, name) for name in site.node.output]
        for _ in range(_MOST_HOPS):
            if any(value in self._wiring.returned for value in ends):
                return True
            follow: list[Site] = [
                self._wiring.sites[i] for value in ends for i, _ in self._wiring.consumers.get(value, ())
            ]
            if not follow or any(s.op not in _AFFINE and s.op not in MOVERS for s in follow):
                return False
            ends = [(s.scope, name) for s in follow for name in s.node.output if name]
        return False


def _divides(reading: Reading) -> bool:
    return reading.site.op == "Div" and reading.reader.input_index == 1


def _counts(candidate: StoredTensor) -> bool:
    """Return whether the values are whole numbers from 1 on that are not all equal."""
    values = content.as_float(candidate.array())
    whole = np.all(values >= 1) and np.all(values == np.floor(values)) and np.all(np.isfinite(values))
    return bool(whole and values.max() > values.min())


def _flat(candidate: StoredTensor) -> content.Array:
    return candidate.array().reshape(-1)
