"""Draw the value of one input of one context, keyed by (seed, input, context): no other draw changes it.

An attempt redraws what exploded: the third and later ones halve the amplitude, the fifth and later ones also fold
values to one side of the mean, for models that take logarithms or roots. NumPy only.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.made.fields import LEVEL, made_field
from tqs_onnx.rollout.made.recipe import Kind, Recipe
from tqs_onnx.rollout.made.series import made_series

Floats = NDArray[np.float64]

#: Attempts per context.
ATTEMPTS = 6
#: Correlation of a forced field with that of the step before.
_MEMORY = 0.9


def draw(recipe: Recipe, seed: int, context: int, steps: int, attempt: int = 0) -> NDArray[Any]:
    """Return the value of an input, in its dtype: [*shape], or [step, *shape] for a forcing.

    Parameters
    ----------
    recipe : Recipe
    seed : int
    context : int
        Index of the context; a shared input does not depend on it.
    steps : int
        Steps of a forcing.
    attempt : int
        See the module docstring; a shared input does not depend on it.
    """
    if recipe.is_shared:
        context = attempt = 0
    name = np.frombuffer(hashlib.sha256(recipe.port.name.encode()).digest(), np.uint32)
    rng = np.random.default_rng([seed, context, attempt, *(int(v) for v in name)])
    n = steps if recipe.is_forced else 1
    if recipe.kind in (Kind.CHOICE, Kind.FILL):
        values = _chosen(recipe, rng, n)
    else:
        values = _amplitude(_standard(recipe, rng, n), attempt) * recipe.deviation + recipe.mean
        values = np.clip(values, recipe.values.low, recipe.values.high) if _is_bounded(recipe) else values
    result: NDArray[Any] = (values if recipe.is_forced else values[0]).astype(recipe.port.dtype)
    return result


def _is_bounded(recipe: Recipe) -> bool:
    return recipe.values.low is not None or recipe.values.high is not None


def _amplitude(values: Floats, attempt: int) -> Floats:
    if attempt >= 4:
        values = np.abs(values)
    return values * 0.5 ** max(attempt - 1, 0)


def _standard(recipe: Recipe, rng: np.random.Generator, steps: int) -> Floats:
    """Return values [step, *shape] of mean 0 and deviation about 1."""
    shape = recipe.shape
    match recipe.kind:
        case Kind.SERIES:
            return _windows(recipe, rng, steps)
        case Kind.HIDDEN:
            return np.zeros((steps, *shape))
        case Kind.FORCED:
            return rng.uniform(-1, 1, (steps, *shape))
        case Kind.HISTORY:
            axis = recipe.axis
            one = tuple(1 if a == axis else n for a, n in enumerate(shape))
            return np.repeat(_fields(recipe, rng, steps, one), shape[axis], axis=1 + axis)
        case _:
            return _fields(recipe, rng, steps, shape)


def _fields(recipe: Recipe, rng: np.random.Generator, steps: int, shape: tuple[int, ...]) -> Floats:
    fields = [made_field(rng, shape, recipe.smooth)]
    for _ in range(1, steps):
        fresh = made_field(rng, shape, recipe.smooth)
        fields.append(_MEMORY * fields[-1] + (1 - _MEMORY**2) ** 0.5 * fresh)
    return np.stack(fields)


def _windows(recipe: Recipe, rng: np.random.Generator, steps: int) -> Floats:
    """Return windows of one long series, each advanced by `hop` values."""
    axis, length = recipe.axis, recipe.shape[recipe.axis]
    others = tuple(n for a, n in enumerate(recipe.shape) if a != axis)
    channels = int(np.prod(others, dtype=np.int64))
    series = made_series(rng, length + recipe.hop * (steps - 1), channels)
    if not recipe.is_free:  # windows of data lie off its mean
        series = (1 - LEVEL**2) ** 0.5 * series + LEVEL * rng.standard_normal(channels)
    windows = [series[i * recipe.hop : i * recipe.hop + length] for i in range(steps)]
    return np.moveaxis(np.stack(windows).reshape(steps, length, *others), 1, 1 + axis)


def _chosen(recipe: Recipe, rng: np.random.Generator, steps: int) -> NDArray[Any]:
    shape = (steps, *recipe.shape)
    if recipe.kind is Kind.FILL:
        return np.full(shape, recipe.fill)
    if recipe.port.dtype.kind == "b":  # a mask: nothing, everything, or a random half of it
        return rng.uniform(size=shape) < (0.0, 1.0, 0.5)[int(rng.integers(3))]
    if recipe.values.below is not None:
        return rng.integers(0, recipe.values.below, shape)
    choices = recipe.values.choices or (0.0, 1.0)
    if recipe.is_shared:
        return np.full(shape, choices[0])
    return rng.choice(np.array(choices), shape)
