"""The nominal rollout that others are compared with: its outputs step by step, and nothing else of it.

Where they lie is decided at the first step, from the bytes of all steps of all contexts ::

    on the device   up to `MOST_DEVICE_BYTES`; on the CPU this is the same as memory
    in memory       up to the limit that is given (under `max_memory`: what the sweep leaves of it), else a quarter of
                    the machine's memory
    in a file       beyond that, without a name, in the folder for temporary files (TMPDIR); one step is read at a time

The results do not depend on it: a step that is read has the bits that were written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.shelf import Place, Shelf
from tqs_onnx.rollout.gauge import Gauge
from tqs_onnx.rollout.guard import most_in_memory
from tqs_onnx.rollout.session import Value, host_value

#: GPU memory that a held rollout may take.
MOST_DEVICE_BYTES = 8 << 30

Where = Literal["device", "memory", "file"]


class Store:
    """Keeps the outputs of steps where there is room for all of them (see the module docstring).

    Parameters
    ----------
    total_bytes : int
        Bytes of all steps of all contexts.
    on_host : bool
        Whether the outputs are in host memory already.
    most_bytes : int or None
        Limit for host memory; None: a quarter of the machine's.

    Raises
    ------
    InputError
        A temporary file is needed and cannot be made.
    """

    def __init__(self, total_bytes: int, *, on_host: bool, most_bytes: int | None = None) -> None:
        self.where = place_of(total_bytes, on_host=on_host, most_bytes=most_bytes)
        self._shelf = Shelf("the nominal rollout") if self.where == "file" else None

    def keep(self, outputs: Mapping[str, Value]) -> dict[str, Value | Place]:
        """Keep the outputs of one step; return what `outputs` needs to give them back."""
        if self._shelf is not None:
            return {n: self._shelf.put(v.numpy()) for n, v in outputs.items()}
        if self.where == "device":
            return dict(outputs)
        return {n: host_value(v.numpy()) for n, v in outputs.items()}

    def outputs(self, kept: Mapping[str, Value | Place]) -> dict[str, Value]:
        """Return the outputs of one step."""
        return {n: v if isinstance(v, Value) else self._read(v) for n, v in kept.items()}

    def _read(self, place: Place) -> Value:
        assert self._shelf is not None
        return host_value(self._shelf.get(place))


def place_of(total_bytes: int, *, on_host: bool, most_bytes: int | None = None) -> Where:
    """Return where a rollout of so many bytes is held (see the module docstring)."""
    most = most_in_memory(None) or total_bytes if most_bytes is None else most_bytes
    if not on_host:
        if total_bytes <= MOST_DEVICE_BYTES:
            return "device"
        return "memory" if total_bytes <= most else "file"
    return "device" if total_bytes <= most else "file"


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A reference rollout for comparisons. Created by `engine.Engine.hold`.

    Parameters
    ----------
    time_after : tuple of int
        See `Trajectory`.
    shapes : dict of str to tuple of int
        Shape ``[context, time, *rest]`` of every trajectory output.
    gauge : Gauge
        Compares the outputs.
    steps : dict of int to list
        Maps the first context of a chunk to what the store kept of each step.
    store : Store
    """

    time_after: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    gauge: Gauge
    steps: dict[int, list[dict[str, Value | Place]]]
    store: Store

    def outputs(self, start: int, step: int) -> dict[str, Value]:
        """Return the trajectory outputs of a step, from 1, of the chunk that begins with context `start`."""
        return self.store.outputs(self.steps[start][step - 1])

    @property
    def template(self) -> dict[str, NDArray[np.float32]]:
        """Arrays of the trajectory's shapes that take no memory; their values mean nothing."""
        return {n: np.broadcast_to(np.float32(0), shape) for n, shape in self.shapes.items()}
