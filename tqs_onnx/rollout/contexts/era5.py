"""The nine ERA5 variables of the paper: their names in files, and their units in files, in SI and in the paper.

========  ==================================================  =========  =========
name      also called                                         SI         paper
========  ==================================================  =========  =========
2t        t2m, 2m_temperature                                 K          °C
10u, 10v  u10, v10, 10m_u_component_of_wind, …                m/s        m/s
msl       mean_sea_level_pressure                             Pa         hPa
t         temperature                                         K          K
u, v      u_component_of_wind, v_component_of_wind            m/s        m/s
q         specific_humidity                                   kg/kg      g/kg
z         geopotential (heights in m are converted to it)      m²/s²      m²/s²
========  ==================================================  =========  =========

Source: the paper, A.3 and Tables 24 and 25; ECMWF's parameter database. NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class Field:
    """One variable: its names in files, and its units in SI and in the paper."""

    names: tuple[str, ...]
    unit: str
    paper_unit: str


FIELDS: dict[str, Field] = {
    "2t": Field(("2t", "t2m", "2m_temperature"), "K", "°C"),
    "10u": Field(("10u", "u10", "10m_u_component_of_wind"), "m/s", "m/s"),
    "10v": Field(("10v", "v10", "10m_v_component_of_wind"), "m/s", "m/s"),
    "msl": Field(("msl", "mean_sea_level_pressure"), "Pa", "hPa"),
    "t": Field(("t", "temperature"), "K", "K"),
    "u": Field(("u", "u_component_of_wind"), "m/s", "m/s"),
    "v": Field(("v", "v_component_of_wind"), "m/s", "m/s"),
    "q": Field(("q", "specific_humidity"), "kg/kg", "g/kg"),
    "z": Field(("z", "geopotential"), "m²/s²", "m²/s²"),
}
_GRAVITY = 9.80665
#: Maps a unit, as `_plain` writes it, to (quantity, factor, offset): SI value = factor · value + offset.
_UNITS: dict[str, tuple[str, float, float]] = {
    **dict.fromkeys(("k", "kelvin", "degk", "degreesk"), ("temperature", 1.0, 0.0)),
    **dict.fromkeys(
        ("c", "celsius", "degc", "degreec", "degreesc", "degcelsius", "degreecelsius", "degreescelsius"),
        ("temperature", 1.0, 273.15),
    ),
    **dict.fromkeys(("m/s", "m s-1"), ("speed", 1.0, 0.0)),
    **dict.fromkeys(("pa", "pascal", "pascals", "n m-2", "n/m2"), ("pressure", 1.0, 0.0)),
    **dict.fromkeys(
        ("hpa", "hectopascal", "hectopascals", "mbar", "mb", "millibar", "millibars"),
        ("pressure", 100.0, 0.0),
    ),
    **dict.fromkeys(("kg/kg", "kg kg-1", "1"), ("humidity", 1.0, 0.0)),
    **dict.fromkeys(("g/kg", "g kg-1"), ("humidity", 1e-3, 0.0)),
    **dict.fromkeys(("m2/s2", "m2 s-2", "j/kg", "j kg-1"), ("geopotential", 1.0, 0.0)),
    **dict.fromkeys(
        ("m", "gpm", "metre", "metres", "meter", "meters", "geopotential metre", "geopotential meter"),
        ("geopotential", _GRAVITY, 0.0),
    ),
}


def _plain(unit: str) -> str:
    """Return a unit in one spelling: powers as digits, factors apart, without signs of degrees, in lower case.

    >>> _plain("m**2.s**-2"), _plain("m²/s²"), _plain("degrees_Celsius"), _plain("m s^{-1}")
    ('m2 s-2', 'm2/s2', 'degreescelsius', 'm s-1')
    """
    text = unit.strip().replace("²", "2").replace("⁻", "-").replace("¹", "1").replace("−", "-")
    text = re.sub(r"\*\*|\^|[{}()]", "", text)
    text = re.sub(r"[·*.]", " ", text).replace("°", "")
    lowered = " ".join(text.lower().split())
    return re.sub(r"^(deg(?:ree)?s?)[ _]?", r"\1", lowered)


def find_name(variable: str, known: Collection[str]) -> str | None:
    """Return the name of a variable in a file with the names `known`; None when no known name is among them.

    >>> find_name("2t", ["t2m", "u10"])
    't2m'
    """
    field = FIELDS.get(variable) or next((f for f in FIELDS.values() if variable in f.names), None)
    return next((n for n in (variable, *(field.names if field else ())) if n in known), None)


def si_unit(variable: str) -> str | None:
    """Return the SI unit of a variable; None for a variable that is not among the nine."""
    field = FIELDS.get(variable) or next((f for f in FIELDS.values() if variable in f.names), None)
    return field.unit if field else None


def converted(
    values: NDArray[np.float64], given: str, wanted: str, *, where: str = ""
) -> NDArray[np.float64]:
    """Convert values from one unit to another.

    Raises
    ------
    InputError
        A unit is unknown, or the units measure different quantities.

    >>> converted(np.array([0.0]), "°C", "K").tolist()
    [273.15]
    """
    if _plain(given) == _plain(wanted):
        return values
    for unit in (given, wanted):
        if _plain(unit) not in _UNITS:
            raise InputError(
                f"unknown unit {unit!r}",
                where=where,
                todo="Name the unit of the file in file_units: K, °C, m/s, Pa, hPa, kg/kg, g/kg, m²/s² or gpm",
            )
    (what, factor, offset), (other, divisor, taken) = _UNITS[_plain(given)], _UNITS[_plain(wanted)]
    if what != other:
        raise InputError(
            f"{given!r} measures {what}, but {wanted!r} measures {other}", where=where, todo="Correct units"
        )
    return (values * factor + (offset - taken)) / divisor


def in_paper_units(variable: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return SI values of one of the nine variables in the unit of the paper's tables.

    >>> in_paper_units("msl", np.array([101325.0])).tolist()
    [1013.25]
    """
    return converted(values, FIELDS[variable].unit, FIELDS[variable].paper_unit)
