"""Extend responses measured at some choices to all choices: the objective `measured`.

The cost of a measured choice is its measurement. The guess for another choice (amplification times error energy) is
multiplied by the ratio measured / guessed observed at the same weight: the logarithm of the ratio is linear in that of
the guess between measured choices and constant outside them. A weight without measurements gets the median ratio of all
weights. Guesses and measurements are therefore comparable, and a choice gains nothing from being measured.
NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tqs_onnx.allocation.choice import Bundle


def expected(
    bundles: Sequence[Sequence[Bundle]], guesses: Sequence[Sequence[float]], responses: Mapping[str, float]
) -> list[list[float]]:
    """Return the expected ‖ΔY‖² of every choice.

    Parameters
    ----------
    bundles : sequence of sequence of Bundle
        Choices of each weight or tie group.
    guesses : sequence of sequence of float
        Predicted ‖ΔY‖² of each choice.
    responses : mapping of str to float
        Measured ‖ΔY‖², by `Bundle.key`.
    """
    if not responses:
        return [list(row) for row in guesses]
    measured = [[responses.get(b.key) for b in row] for row in bundles]
    points = [_points(row, found) for row, found in zip(guesses, measured, strict=True)]
    every = [ratio for row in points for _, ratio in row]
    usual = float(np.median(every)) if every else 0.0
    return [
        [_one(guess, value, at, usual) for guess, value in zip(row, found, strict=True)]
        for row, found, at in zip(guesses, measured, points, strict=True)
    ]


def finite_choices(bundles: Sequence[Bundle], responses: Mapping[str, float]) -> list[int]:
    """Return the indices of the choices that kept the rollout finite; all choices when none did."""
    every = list(range(len(bundles)))
    return [i for i in every if responses.get(bundles[i].key) != math.inf] or every


def _points(guesses: Sequence[float], found: Sequence[float | None]) -> list[tuple[float, float]]:
    """Return (ln guess, ln ratio) of the measured choices, by increasing guess."""
    usable = (
        (math.log(guess), math.log(value / guess))
        for guess, value in zip(guesses, found, strict=True)
        if value is not None and guess > 0 and 0 < value < math.inf
    )
    return sorted(usable)


def _one(guess: float, value: float | None, points: Sequence[tuple[float, float]], usual: float) -> float:
    if value is not None and value < math.inf:
        return value
    if guess <= 0:
        return guess
    ratio = usual
    if points:
        ratio = float(np.interp(math.log(guess), [x for x, _ in points], [y for _, y in points]))
    return guess * math.exp(ratio)
