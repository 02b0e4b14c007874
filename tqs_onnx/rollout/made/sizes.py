"""Find the sizes that a model leaves open: those that the rollout spec states, else the first that runs.

Dimensions of one name have one size. The batch axis is not among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from tqs_onnx.rollout.contexts.context_set import context_shape
from tqs_onnx.rollout.spec.signature import Dim, ModelSignature, Port
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_passes.errors import InputError

#: Sizes to try, in this order: lengths of windows and frames, edges of grids, numbers of channels.
SIZES = (64, 96, 128, 32, 24, 16, 10, 60, 48, 30, 20, 12, 8, 576, 512, 480, 256, 1024, 7, 5, 4, 3, 2, 1)
#: Combinations to try when dimensions of several names do not run with one common size.
_MOST_TRIALS = 200

Shapes = dict[str, tuple[int, ...]]


def open_sizes(spec: RolloutSpec, signature: ModelSignature) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the sizes of symbolic dimensions that the spec states, and the names of the others.

    Raises
    ------
    InputError
        The rank of an input is not declared.
    """
    stated: dict[str, int] = {}
    names: dict[str, None] = {}
    for port in signature.inputs:
        shape = context_shape(spec, port)
        if shape is None:
            raise InputError(
                f"input {port} cannot be made", where="made contexts", todo="Give `contexts` as arrays"
            )
        for axis, dim in enumerate(shape):
            if isinstance(dim, str):
                names[_name(port, axis, dim)] = None
                if spec.rollout.batch_axis is None and (axis == 0 or "batch" in dim.lower()):
                    stated.setdefault(_name(port, axis, dim), 1)
        stated |= _windowed(port, shape, spec)
    return stated, tuple(name for name in names if name not in stated)


def _name(port: Port, axis: int, dim: Dim) -> str:
    return dim if isinstance(dim, str) and dim not in ("", "?") else f"axis {axis} of {port.name}"


def _windowed(port: Port, shape: tuple[Dim, ...], spec: RolloutSpec) -> dict[str, int]:
    """Return the sizes that `[windows]` states for its input: [context] or [context, columns]."""
    windows = spec.windows
    if windows is None or windows.input != port.name:
        return {}
    sizes: list[int | None] = [windows.context]
    if windows.layout == "table":
        sizes.append(None if windows.columns is None else len(windows.columns))
    pairs = zip(range(len(shape)), shape, sizes, strict=False)
    return {_name(port, a, d): n for a, d, n in pairs if isinstance(d, str) and n is not None}


def shapes_with(spec: RolloutSpec, signature: ModelSignature, sizes: Mapping[str, int]) -> Shapes:
    """Return the shape of one context of every input, without the batch axis."""
    return {
        port.name: tuple(
            sizes[_name(port, axis, dim)] if isinstance(dim, str) else dim
            for axis, dim in enumerate(context_shape(spec, port) or ())
        )
        for port in signature.inputs
    }


def found_sizes(
    spec: RolloutSpec, signature: ModelSignature, runs: Callable[[Shapes], InputError | None]
) -> tuple[Shapes, dict[str, int]]:
    """Return the shape of one context of every input, and the sizes that were found by trial.

    Parameters
    ----------
    spec : RolloutSpec
    signature : ModelSignature
    runs : callable
        Runs the model with contexts of these shapes; returns the error if it fails.

    Raises
    ------
    InputError
        No size that is tried runs.
    """
    stated, names = open_sizes(spec, signature)
    if not names:
        return shapes_with(spec, signature, stated), {}
    error: InputError | None = None
    for sizes in itertools.islice(_trials(names), _MOST_TRIALS):
        shapes = shapes_with(spec, signature, stated | sizes)
        failure = runs(shapes)
        if failure is None:
            return shapes, sizes
        error = error or failure
    raise InputError(
        f"no size that was tried for {', '.join(names)} runs ({error.what if error else 'none'})",
        where="made contexts",
        todo="Give `contexts` as arrays",
    )


def _trials(names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    for size in SIZES:
        yield dict.fromkeys(names, size)
    if len(names) > 1:
        for sizes in itertools.product(SIZES, repeat=len(names)):
            yield dict(zip(names, sizes, strict=True))
