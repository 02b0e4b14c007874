"""A set of contexts: the arrays fed to the model at step 0, and facts about them.

Never imports onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.shelf import is_mapped, mapped
from tqs_onnx.rollout.spec.signature import Dim, Port
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError

#: A standard deviation below this share of the largest value is a rounding error, not variation.
_CONSTANT = 1e-12
#: Number of values that are widened to float64 at a time.
_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Contexts:
    """Initial conditions; the first axis of every array is the context.

    Parameters
    ----------
    arrays : dict of str to NDArray
        Maps a model input to [context, *input shape without the batch axis], of the input's dtype; a forcing to
        [context, step, *input shape without the batch axis].
    truth : dict of str to NDArray
        Maps a trajectory output to [context, time, *rest], in data units; empty when there is none.
    series : tuple of str or None
        Label of each context.
    rows : NDArray[np.int64] or None
        [context, 2]: first row and one past the last row of the table that the context and its truth use.
    source : str
        File that the contexts were read from.
    scales : dict of str to float or None
        Maps a series or column to its population standard deviation (ddof 0) over the training rows.
    columns : tuple of str or None
        Names of the columns along the last axis (layout `table`).
    table : str or None
        SHA-256 of the table that `rows` refers to.
    notes : tuple of str
        Notes for the user about how they were read.
    factors : dict of str to float or None
        Maps a variable to what turns a difference in the output's unit into one in the unit of the table.
    made_seed : int or None
        Seed of made contexts; None if they are data.
    latitudes : tuple of float or None
        Latitudes of the grid, in degrees; the grid is the last two axes of the trajectory.
    """

    arrays: dict[str, NDArray[Any]]
    truth: dict[str, NDArray[Any]]
    series: tuple[str, ...] | None = None
    rows: NDArray[np.int64] | None = None
    source: str = ""
    scales: dict[str, float] | None = None
    columns: tuple[str, ...] | None = None
    table: str | None = None
    notes: tuple[str, ...] = ()
    factors: dict[str, float] | None = None
    made_seed: int | None = None
    latitudes: tuple[float, ...] | None = None

    @property
    def is_made(self) -> bool:
        """Whether nobody measured them; see `rollout.made`."""
        return self.made_seed is not None

    @property
    def n_contexts(self) -> int:
        """Number of contexts."""
        return next((len(a) for a in self.arrays.values()), 0)

    def take(self, indices: Sequence[int]) -> Contexts:
        """Return the contexts at `indices`, in that order; arrays that lie in files are copied into others."""
        chosen = list(indices)
        return replace(
            self,
            arrays={k: _taken(a, chosen) for k, a in self.arrays.items()},
            truth={k: _taken(a, chosen) for k, a in self.truth.items()},
            series=None if self.series is None else tuple(self.series[i] for i in chosen),
            rows=None if self.rows is None else self.rows[chosen],
        )


def _taken(array: NDArray[Any], chosen: list[int]) -> NDArray[Any]:
    if not is_mapped(array):
        return array[chosen]
    return _in_file(array, chosen)


def _in_file(array: NDArray[Any], rows: Sequence[int]) -> NDArray[Any]:
    shape = (len(rows), *array.shape[1:])
    size = _n_rows(array)
    parts = (array[rows[start : start + size]] for start in range(0, len(rows), size))
    return mapped(parts, shape, array.dtype, "the contexts")


def _n_rows(array: NDArray[Any]) -> int:
    """Return how many contexts of an array are handled at a time: one each would take minutes where they are small."""
    return max(1, _BLOCK_VALUES * len(array) // max(1, array.size))


def blocks_of(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array [context, ...] some contexts at a time."""
    size = _n_rows(array)
    return (array[start : start + size] for start in range(0, len(array), size))


def made_of_parts(parts: Iterable[NDArray[Any]], like: NDArray[Any]) -> NDArray[Any]:
    """Return an array of the shape, the type and the place of another, from parts with its next values in C order."""
    if is_mapped(like):
        return mapped(parts, like.shape, like.dtype, "the contexts")
    made = np.empty(like.shape, like.dtype)
    flat, start = made.reshape(-1), 0
    for part in parts:
        flat[start : start + part.size] = part.reshape(-1)
        start += part.size
    return made


def n_held_bytes(contexts: Contexts) -> int:
    """Return the bytes of all arrays that memory holds, truths too."""
    every = (*contexts.arrays.values(), *contexts.truth.values())
    return sum(a.nbytes for a in every if not is_mapped(a))


def n_mapped_bytes(contexts: Contexts) -> int:
    """Return the bytes of all arrays that lie in temporary files."""
    every = (*contexts.arrays.values(), *contexts.truth.values())
    return sum(a.nbytes for a in every if is_mapped(a))


def kept_within(contexts: Contexts, most_bytes: int | None) -> Contexts:
    """Return contexts that take at most so much memory: if it is more, their arrays lie in temporary files.

    Raises
    ------
    InputError
        The disk is full.
    """
    if most_bytes is None or n_held_bytes(contexts) <= most_bytes:
        return contexts

    def placed(array: NDArray[Any]) -> NDArray[Any]:
        return array if is_mapped(array) else _in_file(array, range(len(array)))

    return replace(
        contexts,
        arrays={name: placed(array) for name, array in contexts.arrays.items()},
        truth={name: placed(array) for name, array in contexts.truth.items()},
    )


def joined(first: Contexts, second: Contexts) -> Contexts:
    """Return the contexts of two sets, those of the second last; what says where they come from is left out.

    Raises
    ------
    InputError
        An input has different shapes in the two sets.
    """
    for name, array in first.arrays.items():
        other = second.arrays[name]
        if array.shape[1:] != other.shape[1:]:
            raise InputError(
                f"input {name!r} has shape {list(array.shape[1:])} in one set and {list(other.shape[1:])} in the other",
                where=second.source,
            )
    arrays = {name: np.concatenate([array, second.arrays[name]]) for name, array in first.arrays.items()}
    return Contexts(arrays, {}, source=f"{first.source} and {second.source}")


def thin(n: int, limit: int | None, groups: Sequence[str] | None = None) -> list[int]:
    """Return at most `limit` of the indices 0 … n − 1, spread evenly over them and over `groups`.

    >>> thin(10, 3)
    [1, 5, 8]
    >>> thin(6, 4, ["a", "b", "a", "b", "a", "b"])
    [0, 1, 4, 5]
    """
    if limit is None or limit >= n:
        return list(range(n))
    if limit < 1:
        raise InputError("the limit of contexts must be at least 1", todo="Give a larger `limit`")
    if groups is None:
        return [(2 * i + 1) * n // (2 * limit) for i in range(limit)]
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = list(members)
    names = [names[i] for i in thin(len(names), limit)]
    chosen: list[int] = []
    for rank, name in enumerate(names):
        share = limit // len(names) + (rank < limit % len(names))
        chosen += [members[name][i] for i in thin(len(members[name]), share)]
    return sorted(chosen)


def context_shape(spec: RolloutSpec, port: Port) -> tuple[Dim, ...] | None:
    """Return the shape of one context of an input: its shape without the batch axis; None if unknown."""
    batch = spec.rollout.batch_axis
    if port.shape is None or batch is None or port.name in spec.shared:
        return port.shape
    return port.shape[:batch] + port.shape[batch + 1 :]


def cast(array: NDArray[Any], port: Port, where: str) -> NDArray[Any]:
    """Return an array in the input's dtype: float to float, integer to integer if the values fit, bool to bool.

    Raises
    ------
    InputError
        The array has another kind, e.g. integers for a float input, or integers that do not fit.
    """
    kinds = {"i": "integer", "u": "integer", "b": "bool", "f": "float"}
    target = "float" if port.dtype.name == "bfloat16" else kinds.get(port.dtype.kind)
    given = "float" if array.dtype.name == "bfloat16" else kinds.get(array.dtype.kind)
    if given is None or given != target:
        raise InputError(
            f"input {port.name!r} expects {port.dtype.name}, got {array.dtype.name}",
            where=where,
            todo="Store the array as " + port.dtype.name,
        )
    if array.dtype == port.dtype:
        return array
    if is_mapped(array):
        parts = (_fitting(block, port, where) for block in blocks_of(array))
        return mapped(parts, array.shape, port.dtype, "the contexts")
    return _fitting(array, port, where)


def _fitting(array: NDArray[Any], port: Port, where: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # floats that become infinite are found by the check for finite values
        result = array.astype(port.dtype)
    if port.dtype.kind in "iu" and not np.array_equal(result, array):
        raise InputError(
            f"input {port.name!r} has integers that do not fit {port.dtype.name}",
            where=where,
            todo="Store smaller integers, or export the model with a wider type",
        )
    return result


def check_finite(array: NDArray[Any], what: str, where: str, *, allow_nan: bool = False) -> None:
    """Raise InputError when an array [context, ...] contains NaN or an infinity, naming the first position.

    `allow_nan`: the model handles NaN itself, so that only an infinity is refused.
    """
    if array.dtype.kind in "biuS":
        return
    size = _n_rows(array) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 0, size):
        block = array[start : start + size]
        wide = block.astype(np.float32) if block.dtype.name == "bfloat16" else block
        bad = np.argwhere(np.isinf(wide) if allow_nan else ~np.isfinite(wide))
        if not len(bad):
            continue
        first = (start + int(bad[0][0]), *(int(i) for i in bad[0][1:]))
        value = "NaN" if np.isnan(float(array[first])) else "an infinity"
        position = f" at position {list(first[1:])}" if first[1:] else ""
        raise InputError(
            f"{what} holds {value} in context {first[0]}{position}",
            where=where,
            todo="Fill the gaps, or leave out such contexts",
        )


def allows_nan(spec: RolloutSpec, port: Port) -> bool:
    """Return whether contexts of an input may hold NaN: the spec says so, or the graph asks for it with IsNaN."""
    return port.takes_nan or any(t.input == port.name and t.allow_nan for t in spec.input)


def std(array: NDArray[Any]) -> float:
    """Return the population standard deviation (ddof 0) in float64; exactly 0 for constant values.

    >>> std(np.full(10, 0.1))
    0.0
    """
    if array.size == 0:
        return 0.0
    rows = np.atleast_1d(array)
    size = max(1, _BLOCK_VALUES * len(rows) // rows.size)
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    mean = sum(float(b.sum(dtype=np.float64)) for b in blocks) / rows.size
    squares = sum(float(np.square(np.subtract(b, mean, dtype=np.float64)).sum()) for b in blocks)
    deviation, most = math.sqrt(squares / rows.size), max(float(np.abs(b).max()) for b in blocks)
    return 0.0 if is_constant(deviation, most) else deviation


def is_constant(deviation: float, most: float) -> bool:
    """Return whether a deviation is only rounding, for values of at most this magnitude."""
    return deviation <= _CONSTANT * most


def held_out(contexts: Contexts, share: float) -> tuple[Contexts, Contexts]:
    """Return (the other contexts, the held-out contexts); both are all contexts when there is only one start.

    Parameters
    ----------
    contexts : Contexts
    share : float
        Share of the starts to hold out, between 0 and 1; at least one is held out.
    """
    found = held_out_indices(contexts, share)
    return (contexts, contexts) if found is None else (contexts.take(found[0]), contexts.take(found[1]))


def held_out_indices(contexts: Contexts, share: float) -> tuple[list[int], list[int]] | None:
    """Return the indices of `held_out`; None when there is only one start."""
    rows = contexts.rows
    starts = np.arange(contexts.n_contexts) if rows is None else rows[:, 0]
    distinct = np.unique(starts)
    if len(distinct) < 2:
        return None
    first = distinct[-min(len(distinct) - 1, math.ceil(share * len(distinct)))]
    held = starts >= first
    before = ~held if rows is None else rows[:, 1] <= first
    kept = before if before.any() else ~held
    return np.flatnonzero(kept).tolist(), np.flatnonzero(held).tolist()


def contexts_hash(contexts: Contexts) -> str:
    """Return the SHA-256 of the contexts' arrays and labels, and of their standard deviations."""
    sha = hashlib.sha256()
    for name in sorted(contexts.arrays):
        array = np.ascontiguousarray(contexts.arrays[name])
        sha.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    sha.update(json.dumps([contexts.series, contexts.columns, contexts.scales], sort_keys=True).encode())
    return sha.hexdigest()
