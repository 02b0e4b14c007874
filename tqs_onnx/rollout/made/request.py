"""What made contexts are asked for: their number, their seed, and the units of inputs that the graph does not state.

In place of a file of contexts one may write ``made``, ``made:64`` (their number) or ``made:64:7`` (and the seed).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tqs_passes.errors import InputError

#: Contexts made by default, one call of the model at the default batch; fewer if they would exceed the bytes.
DEFAULT_NUMBER = 32
#: The same for a model that takes one context a call: every other one costs as much again.
DEFAULT_ALONE = 8
DEFAULT_BYTES = 256 << 20
_FEWEST = 4
_FORM = re.compile(r"made(?::([0-9]+)(?::([0-9]+))?)?")


@dataclass(frozen=True, slots=True)
class MadeRequest:
    """A request for made contexts.

    Parameters
    ----------
    n : int or None
        Number of contexts; None: `DEFAULT_NUMBER`, or as many as `DEFAULT_BYTES` hold; `DEFAULT_ALONE` for a model that
        takes one context a call.
    seed : int
        Another seed gives other contexts.
    most : int or None
        Maximum number of contexts.

    Raises
    ------
    InputError
        There is no context to make, or the seed is negative.
    """

    n: int | None = None
    seed: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        if min(1 if n is None else n for n in (self.n, self.most)) < 1 or self.seed < 0:
            raise InputError(
                f"{self.n} contexts with seed {self.seed} cannot be made",
                where="made contexts",
                todo="Ask for at least one, with a seed from 0",
            )

    def number(self, context_bytes: int, *, alone: bool = False) -> int:
        """Return the number of contexts to make, of so many bytes each; `alone`: a call takes one.

        >>> MadeRequest().number(1000), MadeRequest(n=50).number(1 << 30), MadeRequest().number(32 << 20)
        (32, 50, 8)
        """
        fitting = max(DEFAULT_BYTES // max(context_bytes, 1), _FEWEST)
        n = min(DEFAULT_ALONE if alone else DEFAULT_NUMBER, fitting) if self.n is None else self.n
        return n if self.most is None else min(n, self.most)


def made_request(text: str, seed: int = 0) -> MadeRequest | None:
    """Return the request that a text in place of a file stands for; None if it is the path of a file.

    Parameters
    ----------
    text : str
    seed : int
        The seed if the text names none.

    Examples
    --------
    >>> made_request("made:64"), made_request("made.npz")
    (MadeRequest(n=64, seed=0, most=None), None)
    """
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    n, given = found.groups()
    return MadeRequest(None if n is None else int(n), seed if given is None else int(given))


@dataclass(frozen=True, slots=True)
class InputScale:
    """Units of an input that the user states.

    Parameters
    ----------
    input : str
    mean, deviation : float
    """

    input: str
    mean: float
    deviation: float


def input_scale(text: str) -> InputScale:
    """Return the units in ``NAME=MEAN,DEVIATION``.

    Raises
    ------
    InputError
        The text has another form, a number is not finite, or the deviation is not positive.

    Examples
    --------
    >>> input_scale("state=273.15,8.3")
    InputScale(input='state', mean=273.15, deviation=8.3)
    """
    name, _, numbers = text.rpartition("=")
    try:
        mean, deviation = (float(part) for part in numbers.split(","))
    except ValueError:
        mean = deviation = math.nan
    if not name or not math.isfinite(mean) or not 0 < deviation < math.inf:
        raise InputError(
            f"{text!r} is not an input with its mean and deviation",
            where="`input_scale`",
            todo="Write NAME=MEAN,DEVIATION, e.g. state=273.15,8.3",
        )
    return InputScale(name, mean, deviation)
