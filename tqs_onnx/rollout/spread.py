"""σ of a nominal rollout that comes step by step: the standard deviation of its variables. NumPy only.

Two passes over the steps: the mean, then the mean squared distance from it, in float64; memory is that of one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from tqs_onnx.rollout.contexts.context_set import Contexts, is_constant
from tqs_onnx.rollout.held import Held
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.variables import by_variable, sigma


def sigma_of(
    spec: RolloutSpec, contexts: Contexts, held: Held, pieces: Callable[[], Iterator[Piece]]
) -> dict[str, float]:
    """Return σ_v of every variable of a held rollout; see `variables.sigma` for where it comes from.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    held : Held
    pieces : callable
        Begins to yield the held rollout.
    """
    return sigma(spec, contexts, held.template, lambda: spread(pieces, spec, contexts)).values


def spread(pieces: Callable[[], Iterator[Piece]], spec: RolloutSpec, contexts: Contexts) -> dict[str, float]:
    """Return the population standard deviation of every variable; 0 for constant values (see `context_set.std`).

    Parameters
    ----------
    pieces : callable
        Begins the rollout of all contexts; called twice, with the same result.
    spec : RolloutSpec
    contexts : Contexts
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    largest: dict[str, float] = {}
    for piece in pieces():
        for name, part in by_variable(piece.outputs, spec, contexts, piece.rows).items():
            if part.size:
                sums[name] = sums.get(name, 0.0) + float(part.sum(dtype=np.float64))
                counts[name] = counts.get(name, 0) + part.size
                largest[name] = max(largest.get(name, 0.0), float(np.abs(part).max()))
    means = {name: total / counts[name] for name, total in sums.items()}
    squares = dict.fromkeys(sums, 0.0)
    for piece in pieces():
        for name, part in by_variable(piece.outputs, spec, contexts, piece.rows).items():
            if part.size:
                squares[name] += float(np.square(np.subtract(part, means[name], dtype=np.float64)).sum())
    found = {name: math.sqrt(total / counts[name]) for name, total in squares.items()}
    return {name: 0.0 if is_constant(value, largest[name]) else value for name, value in found.items()}
