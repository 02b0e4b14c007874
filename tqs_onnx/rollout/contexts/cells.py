"""What a cell of a text table says: a number, a missing value, a date, or something else.

    100.1  1e3  -7      a number
    100,1               a number with a decimal comma
    1,000               the same, unless `may_group_thousands` and the rest of its column leave it open
    ''  ?  -  NA  NaN   missing (see `MISSING`; upper and lower case alike)
    2020-01-31 06:00    a date, with or without a time of day
    31.01.2020, 31/1/20, 31-Jan-2020

A date with slashes may have its day or its month first; `date_seconds` gives both readings, and the column decides.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

#: What marks a missing cell, in lower case.
MISSING = frozenset(
    {"", "?", "-", "--", ".", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "nil", "missing"}
)
#: A longer cell is no number: nobody writes one, and its digits would take memory.
_LONGEST_NUMBER = 64
_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
#: What may as well be a number with commas between its thousands.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_TIME = r"(?:[ T](\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?(?: ?(?:Z|UTC|[+-]\d{2}:?\d{2}))?)?"
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})" + _TIME)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})" + _TIME)
_NAMED = re.compile(r"(\d{1,2})[- ]([A-Za-z]{3})[a-z]*[- ](\d{4}|\d{2})" + _TIME)
_MONTH_ONLY = re.compile(r"(\d{4})-(\d{2})")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def is_missing(cell: str) -> bool:
    """Return whether a cell marks a missing value."""
    return cell.lower() in MISSING


def number(cell: str) -> float:
    """Return the number in a cell, with a decimal point or comma; NaN if there is none.

    >>> number("7,9"), number("-1e3"), math.isnan(number("load"))
    (7.9, -1000.0, True)
    """
    if (
        len(cell) > _LONGEST_NUMBER or "_" in cell
    ):  # `float` reads 12_3 as 123, but only Python writes numbers so
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return float(cell.replace(",", ".")) if has_decimal_comma(cell) else math.nan


def has_decimal_comma(cell: str) -> bool:
    """Return whether a cell is a number with a decimal comma."""
    return _COMMA.fullmatch(cell) is not None


def may_group_thousands(cell: str) -> bool:
    """Return whether the commas of a cell may stand between thousands.

    >>> [may_group_thousands(c) for c in ("1,000", "1,000,000", "0,512", "7,9")]
    [True, True, False, False]
    """
    return _GROUPED.fullmatch(cell) is not None


def date_seconds(cell: str) -> tuple[float, float] | None:
    """Return the seconds since 1970 of a date as written (no time zone), day first and month first.

    The two are equal unless day and month are separated by slashes or dashes and the year is last; NaN marks a reading
    that is no date. None: the cell is no date at all.

    >>> date_seconds("1970-01-02 01:00")
    (90000.0, 90000.0)
    >>> date_seconds("01/02/1970")
    (2678400.0, 86400.0)
    """
    if len(cell) > _LONGEST_NUMBER:
        return None
    if len(cell) >= 10 and cell[:4].isdigit():
        try:
            moment = datetime.fromisoformat(cell)  # fast: most dates are written like this
        except ValueError:
            pass
        else:
            return _same(moment.replace(microsecond=0, tzinfo=UTC).timestamp())
    if found := _YEAR_FIRST.fullmatch(cell):
        year, _, month, day, *clock = found.groups()
        return _same(_seconds(year, month, day, clock))
    if found := _YEAR_LAST.fullmatch(cell):
        first, mark, second, year, *clock = found.groups()
        day_first = _seconds(year, second, first, clock)
        if mark == ".":
            return _same(day_first)
        both = (day_first, _seconds(year, first, second, clock))
        return None if all(math.isnan(s) for s in both) else both
    if found := _NAMED.fullmatch(cell):
        day, name, year, *clock = found.groups()
        if name.lower() not in _MONTHS:
            return None
        return _same(_seconds(year, str(_MONTHS.index(name.lower()) + 1), day, clock))
    if found := _MONTH_ONLY.fullmatch(cell):
        return _same(_seconds(found[1], found[2], "1", []))
    return None


def digits_seconds(value: float) -> float:
    """Return the seconds since 1970 of a date written as digits: 20190131, 2019013106, …; NaN if it is none.

    >>> digits_seconds(19700102), digits_seconds(1970010201)
    (86400.0, 90000.0)
    """
    text = f"{value:.0f}"
    if len(text) not in (8, 10, 12, 14) or not text.isdigit() or not 1800 <= int(text[:4]) <= 2200:
        return math.nan
    clock = [text[i : i + 2] for i in range(8, len(text), 2)]
    return _seconds(text[:4], text[4:6], text[6:8], clock)


def _same(seconds: float) -> tuple[float, float] | None:
    return None if math.isnan(seconds) else (seconds, seconds)


def _seconds(year: str, month: str, day: str, clock: list[str | None] | list[str]) -> float:
    whole = int(year) + (0 if len(year) == 4 else 2000 if int(year) < 70 else 1900)
    hour, minute, second = ([int(c or 0) for c in clock] + [0, 0, 0])[:3]
    try:
        return datetime(whole, int(month), int(day), hour, minute, second, tzinfo=UTC).timestamp()
    except ValueError:
        return math.nan
