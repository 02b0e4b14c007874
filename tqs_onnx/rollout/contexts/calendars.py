"""Times of NetCDF files: numbers of a unit since a date, in one of the CF conventions' calendars.

Seconds since 1970 are counted in the file's own calendar: a `noleap` year has 365 days, a `360_day` month 30.
NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SINCE = re.compile(
    r"(\w+) since (-?\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T ](\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.\d*)?)?)?"
    r"\s*(?:Z|UTC|GMT|[+-]?0{1,2}(?::?00)?)?"
)
_DAY = 86400
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FIXED = {
    "noleap": _MONTHS,
    "365_day": _MONTHS,
    "all_leap": (31, 29, *_MONTHS[2:]),
    "366_day": (31, 29, *_MONTHS[2:]),
    "360_day": (30,) * 12,
}
_REAL = frozenset({"standard", "gregorian", "proleptic_gregorian"})
CALENDARS = (*sorted(_REAL), *_FIXED)


def unit_seconds(unit: str) -> float | None:
    """Return the seconds of a unit of time; None if it is none.

    >>> unit_seconds("hours"), unit_seconds("m/s")
    (3600.0, None)
    """
    names = {
        1e-9: ("nanosecond", "ns"),
        1e-6: ("microsecond", "us"),
        1e-3: ("millisecond", "ms", "msec"),
        1.0: ("second", "s", "sec"),
        60.0: ("minute", "min"),
        3600.0: ("hour", "h", "hr"),
        86400.0: ("day", "d"),
    }
    wanted = unit.strip().lower()
    return next(
        (s for s, known in names.items() if wanted in known or wanted.removesuffix("s") in known), None
    )


def seconds_since(values: NDArray[Any], units: str, calendar: str) -> NDArray[np.int64]:
    """Return times in seconds since 1970 in their calendar, from numbers such as hours since 1900-01-01.

    Raises
    ------
    ValueError
        The unit or the calendar is not known; the message says which.

    >>> seconds_since(np.array([24]), "hours since 1970-01-01", "standard").tolist()
    [86400]
    """
    found = _SINCE.fullmatch(units.strip())
    factor = None if found is None else unit_seconds(found[1])
    if found is None or factor is None:
        raise ValueError(f"times in {units!r} are not read: they must be e.g. 'hours since 1970-01-01'")
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[1:])
    start = date_seconds(year, month, day, calendar) + 3600 * hour + 60 * minute + second
    return start + lead_seconds(values, factor)


def lead_seconds(values: NDArray[Any], factor: float) -> NDArray[np.int64]:
    """Return numbers of a unit of `factor` seconds as whole seconds."""
    if values.dtype.kind in "iu" and factor >= 1:
        return values.astype(np.int64) * int(factor)
    return np.rint(values.astype(np.float64) * factor).astype(np.int64)


def date_seconds(year: int, month: int, day: int, calendar: str) -> int:
    """Return the seconds since 1970 of a day in a calendar; see `seconds_since` for the error.

    >>> date_seconds(1972, 3, 1, "noleap") // 86400, date_seconds(1972, 3, 1, "standard") // 86400
    (789, 790)
    """
    if calendar in _REAL:
        if calendar != "proleptic_gregorian" and (year, month, day) < (1582, 10, 15):
            return (_julian_day(year, month, day) - 2440588) * _DAY
        moment = np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "s")
        return int(moment.astype(np.int64))
    months = _FIXED.get(calendar)
    if months is None:
        raise ValueError(f"the calendar {calendar!r} is not read: only {', '.join(CALENDARS)}")
    if not (1 <= month <= 12 and 1 <= day <= months[month - 1]):
        raise ValueError(f"{year}-{month}-{day} is no day of the calendar {calendar}")
    return ((year - 1970) * sum(months) + sum(months[: month - 1]) + day - 1) * _DAY


def text_of(seconds: int, calendar: str) -> str:
    """Return a time as text, to the hour.

    >>> text_of(789 * 86400, "noleap"), text_of(3600, "standard")
    ('1972-03-01T00', '1970-01-01T01')
    """
    if calendar in _REAL:
        return str(np.datetime64(seconds, "s").astype("datetime64[h]"))
    months: Sequence[int] = _FIXED[calendar]
    days, rest = divmod(seconds, _DAY)
    year, day = divmod(days, sum(months))
    month = 0
    while day >= months[month]:
        day -= months[month]
        month += 1
    return f"{year + 1970:04d}-{month + 1:02d}-{day + 1:02d}T{rest // 3600:02d}"


def _julian_day(year: int, month: int, day: int) -> int:
    """Return the number of a day of the Julian calendar, which `standard` uses before 15 October 1582."""
    shift = (14 - month) // 12
    years, months = year + 4800 - shift, month + 12 * shift - 3
    return day + (153 * months + 2) // 5 + 365 * years + years // 4 - 32083
