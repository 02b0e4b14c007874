"""The distance between two trajectories, in units of each variable's own standard deviation.

For variable v with S_v contexts of n_v values each, e_v = Σ (ΔY/σ_v)². Drift is ::

    drift² = mean over v of  e_v / (S_v · n_v)

The energy of one context is weighted so that the mean energy over contexts is N · drift², where N is the number of
values of one context's trajectory: every variable counts the same, whatever its number of values. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.stream import Piece
from tqs_onnx.rollout.variables import by_variable
from tqs_passes.errors import InputError

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Ruler:
    """Measures the difference of trajectories.

    Parameters
    ----------
    spec : RolloutSpec
    contexts : Contexts
    sigma : dict of str to float
        σ_v; set all to 1 to measure in the data's own units.
    rows : dict of str to int array
        Maps a variable to its contexts.
    n_values : int
        N, the number of values of one context's trajectory.
    balanced : bool
        Whether every variable counts the same; else every value does, as in the paper's plain norm.
    """

    spec: RolloutSpec
    contexts: Contexts
    sigma: dict[str, float]
    rows: dict[str, NDArray[np.int64]]
    n_values: int
    balanced: bool = True

    def squares(self, a: Arrays, b: Arrays, rows: slice | None = None) -> dict[str, NDArray[np.float64]]:
        """Return Σ over space of ((a − b)/σ_v)², float64 ``[contexts of v, time]``, for each variable v.

        `rows` names the contexts in the arrays; default: all.
        """
        out: dict[str, NDArray[np.float64]] = {}
        theirs = by_variable(b, self.spec, self.contexts, rows)
        for name, mine in by_variable(a, self.spec, self.contexts, rows).items():
            delta = (mine.astype(np.float64) - theirs[name]) / self.sigma[name]
            flat = delta.reshape(*delta.shape[:2], math.prod(delta.shape[2:]))
            out[name] = np.einsum("stx,stx->st", flat, flat)
        return out

    def squares_of(self, a: Iterable[Piece], b: Iterable[Piece]) -> dict[str, NDArray[np.float64]]:
        """Return the squares of two rollouts that come step by step, in the same chunks; one step is in memory.

        The result has the bits of `squares` of the whole trajectories.
        """
        cells: dict[str, list[list[NDArray[np.float64]]]] = {}
        for mine, theirs in zip(a, b, strict=True):
            for name, part in self.squares(mine.outputs, theirs.outputs, mine.rows).items():
                chunks = cells.setdefault(name, [])
                if mine.step == 1:
                    chunks.append([])
                chunks[-1].append(part)
        return {n: np.concatenate([np.concatenate(chunk, 1) for chunk in cells[n]]) for n in self.rows}

    def parts(self, squares: Arrays, rows: slice | None = None) -> dict[str, NDArray[np.float64]]:
        """Return the result of `squares`, from squared differences that already exist (`gauge.Squares`)."""
        return {
            name: part.sum(axis=tuple(range(2, part.ndim))) / self.sigma[name] ** 2
            for name, part in by_variable(squares, self.spec, self.contexts, rows).items()
        }

    def energy(
        self,
        squares: Mapping[str, NDArray[np.float64]],
        n_space: Mapping[str, int],
        n_time: int | None = None,
    ) -> NDArray[np.float64]:
        """Return the weighted energy per context and time, float64 ``[contexts, time]`` (see module docstring).

        `n_time` is the number of time values of a whole trajectory, when a rollout was stopped early.
        """
        n_contexts = self.contexts.n_contexts
        given = next(iter(squares.values())).shape[1]
        total = np.zeros((n_contexts, given))
        for name, square in squares.items():
            n_v = n_space[name] * (n_time or given)
            share = n_contexts * self.n_values / (len(squares) * len(self.rows[name]) * n_v)
            total[self.rows[name]] += square * (share if self.balanced else 1.0)
        return total


def n_space(arrays: Arrays, spec: RolloutSpec, contexts: Contexts) -> dict[str, int]:
    """Return the values per context and time of each variable; only the shapes of the arrays are used."""
    one = {name: array[:, :1] for name, array in arrays.items()}
    return {
        name: int(np.prod(array.shape[2:], dtype=np.int64))
        for name, array in by_variable(one, spec, contexts).items()
    }


def ruler_for(arrays: Arrays, spec: RolloutSpec, contexts: Contexts, sigma: Mapping[str, float]) -> Ruler:
    """Return the ruler for trajectories shaped like `arrays`, whose values are not used.

    Raises
    ------
    InputError
        A variable has no σ: the contexts contain other variables than those that were scored.
    """
    ids = {
        name: np.broadcast_to(np.arange(len(a)).reshape(-1, *[1] * (a.ndim - 1)), (len(a), 1, *a.shape[2:]))
        for name, a in arrays.items()
    }
    # The first index of each row, copied, because a view would keep all of them in memory.
    rows = {
        name: index.reshape(len(index), math.prod(index.shape[1:]))[:, 0].astype(np.int64)
        for name, index in by_variable(ids, spec, contexts).items()
    }
    require_scored(rows, sigma, contexts.source)
    n_values = sum(int(np.prod(a.shape[1:], dtype=np.int64)) for a in arrays.values())
    return Ruler(spec, contexts, {name: float(sigma[name]) for name in rows}, rows, n_values)


def require_scored(variables: Iterable[str], sigma: Mapping[str, float], source: str) -> None:
    """Refuse variables without σ.

    Raises
    ------
    InputError
        The contexts of the file `source` contain other variables than those that were scored.
    """
    unknown = [name for name in variables if name not in sigma]
    if unknown:
        raise InputError(
            f"variable {unknown[0]!r} was not scored, so its σ is unknown",
            where=source,
            todo=f"Use contexts with the scored variables: {', '.join(sigma)}",
        )


def drift_of(squares: Mapping[str, NDArray[np.float64]], spaces: Mapping[str, int]) -> float:
    """Return drift from per-variable squares (see module docstring)."""
    parts = [float(np.mean(s)) / spaces[name] for name, s in squares.items()]
    return float(np.sqrt(np.mean(parts)))
