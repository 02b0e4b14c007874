"""What a process of a cluster does: sit at a desk, with the model that was shipped to it.

A node must have this package installed; the model, the contexts and the plan come through Ray's object store.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tqs_onnx.rollout.session import runtime_version
from tqs_onnx.scoring.measure.desk import Desk
from tqs_onnx.scoring.measure.station import Frame
from tqs_onnx.scoring.measure.task import Found, Task
from tqs_onnx.scoring.plan.fingerprint import instruction_set
from tqs_onnx.scoring.workers.ray_connect import imported_ray
from tqs_onnx.scoring.workers.ray_shipment import Bytes, Shipment, unpack
from tqs_onnx.version import VERSION
from tqs_passes.errors import TqsError


@dataclass(frozen=True, slots=True)
class Refused:
    """What an actor answers where a desk raises: an error of the user's, in three parts."""

    what: str
    where: str
    todo: str


def identity(provider: str) -> dict[str, str]:
    """Return what must be the same on every machine of a sweep."""
    return {
        "tqs-onnx": VERSION,
        "onnxruntime": runtime_version(),
        "numpy": np.__version__,
        "instruction set": instruction_set(provider),
    }


class Actor:
    """A desk in a process of a cluster; Ray makes it from this class.

    Parameters
    ----------
    cargo : list of ObjectRef
        The shipment, alone in a list: Ray would fetch it before the actor starts.
    content : dict of str to ObjectRef
        The bytes of the weights, by SHA-256.
    threads : int
    """

    def __init__(self, cargo: list[Any], content: dict[str, Any], threads: int) -> None:
        self._cargo = cargo
        self._content = content
        self._threads = threads
        self._desk: Desk | None = None

    def identity(self, provider: str) -> dict[str, str]:
        """Return what this machine is (see the function)."""
        return identity(provider)

    def work(self, frame: Frame | None, task: Task) -> Generator[Frame | Found | Refused]:
        """Measure a task and yield what is found; without a frame, yield the job's first."""
        try:
            desk = self._desk = self._desk or self._made_desk()
            if frame is None:
                frame = desk.frame()
                yield frame
            yield from desk.measure(frame, task)
        except TqsError as error:
            yield Refused(error.what, error.where, error.todo)

    def _made_desk(self) -> Desk:
        ray = imported_ray()
        shipment: Shipment = ray.get(self._cargo[0])
        run = replace(shipment.plan.run, threads=self._threads)

        def get(sha256: str) -> Bytes:
            content: Bytes = ray.get(self._content[sha256])
            return content

        return Desk(replace(shipment.plan, run=run), unpack(shipment, get))
