"""Compares other ONNX files of one model, whoever made them, with it: bytes, drift, native errors, latency, memory.

Nothing is known about the files but that they take the model's inputs and give its outputs: no plan, no scores. σ is
that of the evaluation contexts, or what the scores of a run froze.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tqs_onnx.inputs.data import Data, DataOptions
from tqs_onnx.inputs.source import Given, Source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.run_directory import resolved
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.stopwatch import race
from tqs_onnx.rollout.stream import Kept
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.shown import Shown
from tqs_onnx.verification.errors import VariableErrors, errors_of
from tqs_onnx.verification.evaluate import Drift, drift_between
from tqs_onnx.verification.moments import compared
from tqs_onnx.verification.timing import feeds_of, paired
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Other:
    """One file beside the model.

    Parameters
    ----------
    name : str
    n_bytes : int
        External data included.
    compression : float
        The model's bytes over these.
    drift : Drift or None
        None if its rollout is not finite.
    errors : dict of str to VariableErrors
        Empty if its rollout is not finite.
    latency : dict of int to float
        Time of one call by batch size over that of the model; empty if not timed.
    peak : float or None
        Peak memory over that of the model; None if not timed, or not reported by the system.
    """

    name: str
    n_bytes: int
    compression: float
    drift: Drift | None
    errors: dict[str, VariableErrors]
    latency: dict[int, float]
    peak: float | None

    @property
    def degradation(self) -> float | None:
        """That of the worst variable, percent; None without truth."""
        return max((e.degradation for e in self.errors.values() if e.degradation is not None), default=None)


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Shown):
    """Files beside their model, in the order given."""

    n_bytes: int
    others: tuple[Other, ...]

    def facts(self) -> dict[str, str]:
        """Return the bytes and the drift of every file."""
        return {
            o.name: f"{o.n_bytes:,} bytes, "
            + ("not finite" if o.drift is None else f"drift {o.drift.total:.4g} σ")
            for o in self.others
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `tqs compare` prints."""
        return {"bytes": self.n_bytes, "files": [_as_json(o) for o in self.others]}


def compare_files(
    model: Given | Source,
    files: Sequence[Path],
    data: DataOptions | Data,
    *,
    run: RunOptions | None = None,
    scores: Scores | None = None,
    timing: bool = True,
) -> Comparison:
    """Roll out files beside their model, and time them in one interleaved run.

    Parameters
    ----------
    model : path, ModelProto or Source
    files : sequence of Path
        With the model's inputs and outputs.
    data : DataOptions or Data
        The evaluation contexts are used.
    run : RunOptions, optional
    scores : Scores, optional
        Their σ is used; default: that of the scoring contexts.
    timing : bool
        Time the files, too.

    Raises
    ------
    InputError
        A file is missing, does not load, or has other inputs.
    """
    options = run or RunOptions()
    source = stages.opened(model, options)
    read = stages.read(data, source, options)
    for file in files:
        if not file.is_file():
            raise InputError("no such file", where=str(file), todo="Give an .onnx file")
    bed = stages.bed_of(source, read, options, scores)
    bed = bed.scaled(bed.sigma).on(read.evaluation)
    names = _names(files)
    nominal = Kept(bed.stream_file(source.path))
    found: list[Other] = []
    for name, file in zip(names, files, strict=True):
        require_loadable(file, bed.provider, device=bed.run.device)
        n_bytes = file_facts(file).n_bytes
        ratio = source.facts.n_bytes / n_bytes
        try:
            result = compared(nominal(), bed.stream_file(file)(), bed.spec, bed.contexts)
        except NonFiniteError as error:
            _LOG.info("%s: %s at step %d", name, error.what, error.step)
            found.append(Other(name, n_bytes, ratio, None, {}, {}, None))
            continue
        drift = drift_between(result, bed.sigma, bed.contexts.source)
        _LOG.info("%s: %d bytes, drift %.4g", name, n_bytes, drift.total)
        errors = errors_of(result, bed.spec, bed.contexts)
        found.append(Other(name, n_bytes, ratio, drift, errors, {}, None))
    bed.close()
    if timing:
        laps = race(
            {"": source.path} | dict(zip(names, files, strict=True)),
            feeds_of(bed),
            provider=bed.provider,
            threads=options.threads,
            device=bed.run.device,
        )
        base = laps[""]
        for i, other in enumerate(found):
            mine = laps[other.name]
            peak = mine.peak_mb / base.peak_mb if mine.peak_mb is not None and base.peak_mb else None
            latency = {b: paired(mine.wall_s[b], base.wall_s[b]) for b in base.wall_s}
            found[i] = Other(
                *(other.name, other.n_bytes, other.compression, other.drift, other.errors, latency, peak)
            )
    return Comparison(source.facts.n_bytes, tuple(found))


def _names(files: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell the files apart."""
    whole = [resolved(file) for file in files]
    if len(set(whole)) < len(whole):
        raise InputError("is given twice", where=str(files[-1]), todo="Give every file once")
    depth = 1
    while len({p.parts[-depth:] for p in whole}) < len(whole):
        depth += 1
    return ["/".join(p.parts[-depth:]) for p in whole]


def _as_json(other: Other) -> dict[str, Any]:
    return {
        "file": other.name,
        "bytes": other.n_bytes,
        "compression": other.compression,
        "drift": None if other.drift is None else other.drift.model_dump(mode="json"),
        "degradation": other.degradation,
        "errors": {name: e.model_dump(mode="json") for name, e in other.errors.items()},
        "latency": {str(b): ratio for b, ratio in other.latency.items()},
        "latency_median": median(other.latency.values()) if other.latency else None,
        "peak_memory": other.peak,
    }
