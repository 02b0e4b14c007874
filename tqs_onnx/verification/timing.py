"""Times an emitted file against its source: load time, memory, and latency at batch 1 and at the rollout's batch.

Both files run under stock options in processes of their own, in interleaved rounds (`tqs_onnx.rollout.stopwatch`), on
the first inputs of the evaluation contexts. Each ratio is file over FP32; that of a latency is the median over the
rounds of the ratio within a round, so that a machine that slows down changes both sides.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import DEFAULT_BATCH
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rollout.stopwatch import Laps, processor, race
from tqs_onnx.rollout.testbed import Testbed

ROUNDS = 9
#: Seconds that the calls of one batch size take at least; see `race`.
LEAST_S = 2.0


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Side(_Frozen):
    """The figures of one file.

    Attributes
    ----------
    load_ms : float
        Time to open a session, median.
    memory_mb, peak_mb : float or None
        Memory that the session takes after one call at every batch size, and at most while loading and calling; None
        where the system does not report it.
    latency_ms : dict of int to float
        Time of one call by batch size, median.
    """

    load_ms: float
    memory_mb: float | None
    peak_mb: float | None
    latency_ms: dict[int, float]


class Timing(_Frozen):
    """Figures of both files in one interleaved run, and the ratios file over FP32.

    Attributes
    ----------
    fp32, file : Side
    load : float
    memory, peak : float or None
        None where the system does not report memory, or FP32 takes none that can be measured.
    latency : dict of int to float
        By batch size.
    rounds : int
        Number of calls at the first batch size.
    threads : int
        Threads per call; 0: the runtime's choice.
    processor : str
        The CPU and its instruction sets.
    """

    fp32: Side
    file: Side
    load: float
    memory: float | None
    peak: float | None
    latency: dict[int, float]
    rounds: int
    threads: int
    processor: str


def measure_timing(source: Path, emitted: Path, bed: Testbed, rounds: int = ROUNDS) -> Timing:
    """Time a file against its source.

    Parameters
    ----------
    source, emitted : Path
    bed : Testbed
        Holds the evaluation contexts.
    rounds : int
        Number of calls at each batch size, at least.

    Raises
    ------
    InputError
        A file does not load or run.
    """
    feeds = feeds_of(bed)
    files = {"fp32": source, "file": emitted}
    where = {"threads": bed.run.threads, "device": bed.run.device}
    found = race(files, feeds, provider=bed.provider, rounds=rounds, least_s=LEAST_S, **where)
    return compared(found["fp32"], found["file"], bed.run.threads)


def feeds_of(bed: Testbed) -> dict[int, dict[str, NDArray[Any]]]:
    """Return the inputs of the calls that are timed, by batch size."""
    return {b: first_inputs(bed.spec, bed.contexts, b) for b in _batches(bed)}


def compared(fp32: Laps, file: Laps, threads: int) -> Timing:
    """Return the figures and ratios of two files timed in one race."""
    return Timing(
        fp32=_side(fp32),
        file=_side(file),
        load=paired(file.load_s, fp32.load_s),
        memory=_ratio(file.resident_mb, fp32.resident_mb),
        peak=_ratio(file.peak_mb, fp32.peak_mb),
        latency={b: paired(file.wall_s[b], fp32.wall_s[b]) for b in fp32.wall_s},
        rounds=len(next(iter(fp32.wall_s.values()), ())),
        threads=threads,
        processor=processor(),
    )


def paired(ours: tuple[float, ...], base: tuple[float, ...]) -> float:
    """Return the median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(ours, base, strict=True))


def first_inputs(spec: RolloutSpec, contexts: Contexts, batch: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of the first call for a batch of contexts, repeated if there are fewer."""
    chosen = [i % contexts.n_contexts for i in range(batch)]
    axis = spec.rollout.batch_axis
    found: dict[str, NDArray[Any]] = {}
    for name in spec.inputs:
        stored = contexts.arrays[name]
        array = stored[chosen, 0] if name in spec.forced else stored[chosen]
        shared = axis is None or name in spec.shared
        found[name] = np.ascontiguousarray(array[0] if shared else np.moveaxis(array, 0, axis or 0))
    return found


def _batches(bed: Testbed) -> tuple[int, ...]:
    """Return 1 and the batch of rollouts; only the one that the model allows, if it is fixed."""
    if bed.spec.rollout.batch_axis is None:
        return (1,)
    fixed = bed.fixed_batch
    return (fixed,) if fixed else tuple(dict.fromkeys((1, bed.run.batch or DEFAULT_BATCH)))


def _side(laps: Laps) -> Side:
    return Side(
        load_ms=1000 * median(laps.load_s),
        memory_mb=laps.resident_mb,
        peak_mb=laps.peak_mb,
        latency_ms={b: 1000 * median(seconds) for b, seconds in laps.wall_s.items()},
    )


def _ratio(ours: float | None, base: float | None) -> float | None:
    return ours / base if ours is not None and base is not None and base > 0 else None
