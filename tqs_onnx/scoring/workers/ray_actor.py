"""The process of one cluster worker: executes tasks on the model that the driver sent.

Every node must have this package installed; the model, the contexts and the plan arrive through Ray's object store.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tqs_onnx.rollout.gpu import gpu_versions
from tqs_onnx.rollout.session import runtime_version
from tqs_onnx.scoring.measure.desk import Desk
from tqs_onnx.scoring.measure.station import Frame
from tqs_onnx.scoring.measure.task import Finding, Task
from tqs_onnx.scoring.plan.fingerprint import instruction_set
from tqs_onnx.scoring.workers.ray_connect import imported_ray
from tqs_onnx.scoring.workers.ray_shipment import Bytes, Shipment, unpack
from tqs_onnx.version import VERSION
from tqs_passes.errors import TqsError


@dataclass(frozen=True, slots=True)
class Refused:
    """An `InputError` raised in an actor, in three parts, returned as a value."""

    what: str
    where: str
    todo: str


def identity(provider: str) -> dict[str, str]:
    """Return the properties that every machine of a job must share."""
    return {
        "tqs-onnx": VERSION,
        "onnxruntime": runtime_version(),
        "numpy": np.__version__,
        "instruction set": instruction_set(provider),
        **({} if provider == "cpu" else {f"version of {n}": v for n, v in gpu_versions().items()}),
    }


class Actor:
    """Executes tasks in a process of a cluster; Ray instantiates this class.

    Parameters
    ----------
    cargo : list of ObjectRef
        The shipment, alone in a list: otherwise Ray would fetch it before the actor starts.
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
        """Return the properties of this machine (see the function `identity`)."""
        return identity(provider)

    def work(self, frame: Frame | None, task: Task) -> Generator[Frame | Finding | Refused]:
        """Execute a task and yield its results; without a frame, yield the frame of the job's first session."""
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
        run = replace(shipment.plan.run, threads=self._threads, devices=())  # Ray shows it one GPU

        def get(sha256: str) -> Bytes:
            content: Bytes = ray.get(self._content[sha256])
            return content

        return Desk(replace(shipment.plan, run=run), unpack(shipment, get))
