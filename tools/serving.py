"""Times files with random inputs and one thread; used by `measure_forms.py`, `bench_serve.py` and `check_oldest.py`.

Each file runs in a process of its own, in interleaved rounds (`tqs_onnx.rollout.stopwatch`). Latency is processor time,
which other load does not lengthen, and the minimum over the rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tqs_onnx.rollout.options import Provider
from tqs_onnx.rollout.session import Session, Value
from tqs_onnx.rollout.stopwatch import processor, race
from tqs_passes.errors import InputError

__all__ = ["feeds_of", "measure", "processor"]


def feeds_of(session: Session, batch: int, most_index: int) -> dict[str, Value]:
    """Return random inputs for a batch size; every named dimension is the batch."""
    ports = [(p.name, [*(p.shape or ())], p.dtype) for p in session.signature.inputs]
    return {name: session.value(array) for name, array in _random(ports, batch, most_index).items()}


def _random(
    ports: list[tuple[str, list[Any], np.dtype[Any]]], batch: int, most_index: int
) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for name, dims, dtype in ports:
        shape = [d if isinstance(d, int) else batch for d in dims]
        draw = rng.integers(0, most_index, shape) if dtype.kind in "iu" else rng.standard_normal(shape)
        feeds[name] = draw.astype(dtype)
    return feeds


def _ports(path: Path) -> list[tuple[str, list[Any], np.dtype[Any]]]:
    graph = onnx.load(path, load_external_data=False).graph
    stored = {t.name for t in graph.initializer}
    kind = onnx.helper.tensor_dtype_to_np_dtype
    return [
        (
            i.name,
            [d.dim_value if d.HasField("dim_value") else None for d in i.type.tensor_type.shape.dim],
            kind(i.type.tensor_type.elem_type),
        )
        for i in graph.input
        if i.name not in stored
    ]


def measure(
    files: dict[str, Path],
    batches: tuple[int, ...],
    *,
    threads: int = 1,
    rounds: int = 7,
    most_index: int = 1,
    provider: Provider = "cpu",
) -> dict[str, dict[str, float]]:
    """Return the figures of every file that loads: ``mb``, ``load_s``, ``ram_mb``, ``peak_mb`` and ``ms@<batch>``.

    Milliseconds are of the processor on the CPU, and of the wall clock on a GPU; memory is that of the host.
    """
    ports = _ports(next(iter(files.values())))
    feeds = {batch: _random(ports, batch, most_index) for batch in batches}
    loading: dict[str, Path] = {}
    for name, path in files.items():
        try:
            race({name: path}, feeds, provider=provider, threads=threads, rounds=0, loads=0)
            loading[name] = path
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr)
    found: dict[str, dict[str, float]] = {}
    for name, laps in race(
        loading, feeds, provider=provider, threads=threads, rounds=rounds, loads=0
    ).items():
        size = sum(p.stat().st_size for p in files[name].parent.glob(f"{files[name].name}*"))
        memory = {"loaded_mb": laps.loaded_mb, "ram_mb": laps.resident_mb, "peak_mb": laps.peak_mb}
        found[name] = {"mb": size / 1e6, "load_s": laps.first_load_s}
        found[name] |= {key: float("nan") if value is None else value for key, value in memory.items()}
        taken = laps.processor_s if provider == "cpu" else laps.wall_s
        found[name] |= {f"ms@{batch}": 1000 * min(taken[batch]) for batch in batches}
    return found
