"""The unit that the errors of a variable are reported in: the table's own, or that of the paper for ERA5.

    a scaled column           errors times its width, σ + 1e-8 of a standardised one (paper, A.11): its own unit
    one of ERA5's nine        K → °C, Pa → hPa, kg/kg → g/kg (paper, A.3 and Tables 24 to 26)
    any other variable        the data's own unit, by the name that `[[variable]]` gives it

Errors are differences, so that only the factor counts, not the offset. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.contexts.era5 import FIELDS, in_paper_units
from tqs_onnx.rollout.spec.spec import RolloutSpec


@dataclass(frozen=True, slots=True)
class Native:
    """The native unit of a variable.

    Parameters
    ----------
    unit : str
        Empty if unknown.
    factor : float
        Native units in one unit of the trajectory.
    """

    unit: str
    factor: float = 1.0


def native_of(name: str, spec: RolloutSpec, contexts: Contexts) -> Native:
    """Return the native unit of a variable.

    Parameters
    ----------
    name : str
        As `variables.by_variable` names it: an output that is one of several comes before its column or series.
    spec : RolloutSpec
    contexts : Contexts
    """
    declared = next((v for v in spec.variable if v.name == name), None)
    unit = "" if declared is None else declared.unit
    factors = contexts.factors or {}
    if name in factors:
        return Native(unit, factors[name])
    label = name.rpartition("/")[2]
    field = next((k for k, f in FIELDS.items() if _stem(label) in f.names), None)
    if field is not None and unit == FIELDS[field].unit:
        zero, one = in_paper_units(field, np.array([0.0, 1.0]))
        return Native(FIELDS[field].paper_unit, float(one - zero))
    return Native(unit)


def _stem(label: str) -> str:
    """Return a variable's name without its level: ``t500`` and ``t_500`` are temperatures.

    >>> _stem("z_850"), _stem("q500"), _stem("t2m"), _stem("u10"), _stem("2t")
    ('z', 'q', 't2m', 'u10', '2t')
    """
    if any(label in field.names for field in FIELDS.values()):
        return label
    bare = label.rstrip("0123456789")
    return bare.rstrip("_- ") if bare else label
