"""Call a model that nobody described, to find out its batch axis, its shapes, and how it behaves when it is fed back.

A *core* is a shape without its batch axis. Values are [case, *core]: a model without a batch axis, or with the batch
exported as 1, is called once a case. Symbolic axes other than the batch get the first size of `SIZES` that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.session import Session
from tqs_onnx.rollout.spec.signature import Port
from tqs_passes.errors import InputError

Array = NDArray[Any]
Shape = tuple[int, ...]
#: Makes the values of one input for one call.
Fill = Callable[[Port, Shape], Array]

#: Sizes tried for symbolic axes that are not the batch.
SIZES = (64, 96, 128, 32, 256, 512, 576, 24, 16, 10, 8, 4, 2, 1)
_BATCH_NAMES = frozenset({"batch", "b", "n", "bs", "batch_size", "batchsize", "none", "batch_dim", "nbatch"})
_TIME_NAMES = ("seq", "time", "len", "step", "frame", "past", "context", "history")
#: Rows of one batch and the same rows alone differ by rounding only.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model lays out a call, as trial calls showed.

    Parameters
    ----------
    batch : dict of str to int
        Axis of the batch, for each input and output that has one.
    cores : dict of str to tuple of int
        Shape of each input and output of one case, without the batch axis.
    free : frozenset of str
        Inputs with a symbolic axis that is not the batch.
    largest : int or None
        Cases that one call takes: None for any number, else 1 (the batch was fixed at export) or the fixed size.
    notes : tuple of str
        What the calls showed that the declared shapes do not say.
    """

    batch: dict[str, int]
    cores: dict[str, Shape]
    free: frozenset[str] = frozenset()
    largest: int | None = None
    notes: tuple[str, ...] = ()

    def axis(self, name: str, core_axis: int) -> int:
        """Return the axis of an input or output, batch included, for an axis of its core."""
        batch = self.batch.get(name)
        return core_axis if batch is None or batch > core_axis else core_axis + 1


@dataclass(frozen=True, slots=True)
class Trial:
    """A loaded model and its layout."""

    session: Session
    layout: Layout

    def call(self, cases: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for inputs [case, *core]; both have the cases first.

        Raises
        ------
        InputError
            The model fails.
        """
        n = len(next(iter(cases.values())))
        size = self.layout.largest or n
        parts = [
            _called(self.session, self.layout, {k: _rows(v, start, size) for k, v in cases.items()})
            for start in range(0, n, size)
        ]
        return {name: np.concatenate([part[name] for part in parts])[:n] for name in parts[0]}


def _rows(array: Array, start: int, size: int) -> Array:
    """Return `size` cases from `start` on; the last one repeats."""
    return array[np.minimum(np.arange(start, start + size), len(array) - 1)]


def _called(session: Session, layout: Layout, cases: Mapping[str, Array]) -> dict[str, Array]:
    fed = {
        name: np.moveaxis(array, 0, layout.batch[name]) if name in layout.batch else array[0]
        for name, array in cases.items()
    }
    made = _run(session, fed)
    return {
        name: np.moveaxis(array, layout.batch[name], 0) if name in layout.batch else array[None]
        for name, array in made.items()
    }


def _run(session: Session, fed: Mapping[str, Array]) -> dict[str, Array]:
    values = {name: session.value(array) for name, array in fed.items()}
    return {name: value.numpy().copy() for name, value in session.run(values).items()}


def try_out(session: Session, fill: Fill) -> Trial:
    """Find out the layout of a model by calling it.

    Raises
    ------
    InputError
        It runs with none of the sizes that are tried; the error is that of the first.
    """
    ports = session.signature.inputs
    keys = {port.name: _keys(port) for port in ports}
    batch = _batch_keys(ports, keys)
    one, shapes, made = _first_call(session, fill, keys, batch)
    free = frozenset(n for n, ks in keys.items() if any(isinstance(k, str) and k not in batch for k in ks))
    cores = shapes | {name: array.shape for name, array in made.items()}
    if batch:
        found = _stacked(session, one, {n: _where(ks, batch) for n, ks in keys.items()}, made)
        if found is not None:
            return Trial(session, _without(found, cores, free))
    fixed = _fixed(session, one, made)
    if fixed is not None:
        size, axes = fixed
        return Trial(session, _without(axes, cores, free, size))
    alone = {n: a for n, ks in keys.items() if (a := _where(ks, batch)) is not None}
    note = ("a call takes one case only, whatever its declared shapes say",) if alone else ()
    return Trial(session, Layout({}, cores, free, 1, note))


def _keys(port: Port) -> tuple[int | str, ...]:
    """Return the sizes of an input; a symbolic one is its name, made unique where the model gives none."""
    shape = port.shape if port.shape is not None else ()
    return tuple(
        size if isinstance(size, int) else size if size not in ("", "?") else f"{port.name}#{axis}"
        for axis, size in enumerate(shape)
    )


def _batch_keys(ports: tuple[Port, ...], keys: Mapping[str, tuple[int | str, ...]]) -> frozenset[str]:
    """Return the symbols of the batch: those with its name, and those of first axes whose name is not one of time."""
    every = [k for port in ports for k in keys[port.name] if isinstance(k, str)]
    named = {k for k in every if k.lower() in _BATCH_NAMES}
    first = {ks[0] for ks in keys.values() if ks and isinstance(ks[0], str)}
    return frozenset(named | {k for k in first if not any(word in k.lower() for word in _TIME_NAMES)})


def _where(keys: tuple[int | str, ...], batch: frozenset[str]) -> int | None:
    return next((axis for axis, key in enumerate(keys) if key in batch), None)


def _first_call(
    session: Session, fill: Fill, keys: Mapping[str, tuple[int | str, ...]], batch: frozenset[str]
) -> tuple[dict[str, Array], dict[str, Shape], dict[str, Array]]:
    """Return the inputs, their shapes and the outputs of a call of one case."""
    first: InputError | None = None
    free = any(isinstance(k, str) and k not in batch for ks in keys.values() for k in ks)
    for size in SIZES if free else SIZES[:1]:
        shapes = {
            name: tuple(k if isinstance(k, int) else 1 if k in batch else size for k in ks)
            for name, ks in keys.items()
        }
        fed = {p.name: fill(p, shapes[p.name]) for p in session.signature.inputs}
        try:
            return fed, shapes, _run(session, fed)
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def _stacked(
    session: Session, one: Mapping[str, Array], axes: Mapping[str, int | None], made: Mapping[str, Array]
) -> dict[str, int] | None:
    """Return the batch axis of each input and output if two cases in a call give what each gives alone."""
    rng = np.random.default_rng(0)
    other = {
        n: a if axes[n] is None or a.dtype.kind != "f" else (a + rng.normal(size=a.shape)).astype(a.dtype)
        for n, a in one.items()
    }
    try:
        second = _run(session, other)
        both = _run(session, _joined(one, other, axes))
    except InputError:
        return None
    found: dict[str, int] = {n: a for n, a in axes.items() if a is not None}
    for name, array in both.items():
        doubled = [
            axis
            for axis, (n, m) in enumerate(zip(array.shape, made[name].shape, strict=False))
            if array.ndim == made[name].ndim and n == 2 * m and m == 1
        ]
        if len(doubled) != 1:
            return None
        rows = np.moveaxis(array, doubled[0], 0)
        alone = (np.moveaxis(made[name], doubled[0], 0)[0], np.moveaxis(second[name], doubled[0], 0)[0])
        if not all(_close(a, b) for a, b in zip(rows, alone, strict=True)):
            return None
        found[name] = doubled[0]
    return found


def _joined(
    one: Mapping[str, Array], other: Mapping[str, Array], axes: Mapping[str, int | None]
) -> dict[str, Array]:
    return {
        n: a if (axis := axes[n]) is None else np.concatenate([a, other[n]], axis) for n, a in one.items()
    }


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return True
    x, y = a.astype(np.float64), b.astype(np.float64)
    return bool(np.max(np.abs(x - y), initial=0.0) <= _TOLERANCE * (1.0 + np.max(np.abs(y), initial=0.0)))


def _fixed(
    session: Session, one: Mapping[str, Array], made: Mapping[str, Array]
) -> tuple[int, dict[str, int]] | None:
    """Return a batch size that was fixed at export, and the axes: the first of all arrays, whose rows change places."""
    arrays = {**one, **made}
    sizes = {a.shape[0] if a.ndim else 0 for a in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        return None
    (size,) = sizes
    if size > 1:
        turned = _run(session, {n: a[::-1].copy() for n, a in one.items()})
        if not all(_close(turned[n][::-1], a) for n, a in made.items()):
            return None
    return size, dict.fromkeys(arrays, 0)


def _without(
    axes: Mapping[str, int], shapes: Mapping[str, Shape], free: frozenset[str], largest: int | None = None
) -> Layout:
    cores = {n: s if n not in axes else s[: axes[n]] + s[axes[n] + 1 :] for n, s in shapes.items()}
    return Layout(dict(axes), cores, free, largest)
