"""The float16 control: the whole model converted by onnxconverter-common, measured like any other file.

It has no plan, so there are no weights to decode: the file is checked, loaded in a child process first (the conversion
cannot detect what crashes a runtime), rolled out in a stock session, and compared with the FP32 file.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tqs_onnx.allocation.request import settled_serving
from tqs_onnx.inputs.source import Source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.baseline import BaselineJob
from tqs_onnx.jobs.options import BaselineOptions, job_settings
from tqs_onnx.jobs.release import gate_results, input_digests
from tqs_onnx.jobs.run_directory import refuse_overwriting, removed_on_failure, run_directory, with_data
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.shown import Shown
from tqs_onnx.verification.evaluate import Drift, TruthError, drift_between, truth_errors
from tqs_onnx.verification.gates import Measured, gate_value, needs_timing, parse_gate
from tqs_onnx.verification.manifest import GateResult, versions
from tqs_onnx.verification.moments import compared
from tqs_onnx.verification.timing import Timing, measure_timing
from tqs_onnx.verification.verdict import verdict_of
from tqs_passes.files.atomic import write_text
from tqs_passes.files.model import file_facts
from tqs_passes.files.save import save_model
from tqs_passes.graph_pass import PassResult
from tqs_passes.pipeline import Pipeline
from tqs_passes.plan.targets import Serving
from tqs_passes.transforms.half_precision.whole import HalfWhole
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.slimming import slim_passes

_LOG = logging.getLogger(__name__)
#: Maximum number of reasons named in the log.
_MOST_REASONS = 3


class ControlManifest(BaseModel):
    """The file `control.json`: the inputs of the control, and the measurements.

    Attributes
    ----------
    inputs, output : dict
        SHA-256 of the files read and written.
    versions : dict of str to str
    settings : dict
        Settings of the job.
    bytes_in, bytes_out : int
    drift : Drift
    truth : dict of str to TruthError
    timing : Timing or None
        None if the file was not timed.
    gates : tuple of GateResult
    on_made_contexts : bool
        Whether nobody measured the contexts: they were made from the model itself.
    skipped : dict of str to str
        Nodes and tensors that the conversion treated differently, with the reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    inputs: dict[str, dict[str, str]]
    output: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    bytes_in: int
    bytes_out: int
    drift: Drift
    truth: dict[str, TruthError]
    timing: Timing | None = None
    gates: tuple[GateResult, ...]
    on_made_contexts: bool = False
    skipped: dict[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class Control(Shown):
    """A float16 control.

    Parameters
    ----------
    manifest : ControlManifest
    emitted, manifest_file : Path
    wall_s : float
    """

    manifest: ControlManifest
    emitted: Path
    manifest_file: Path
    wall_s: float

    @property
    def verdict(self) -> str:
        """The verdict on the file; see `verdict`."""
        m = self.manifest
        return verdict_of(m.bytes_in / m.bytes_out, m.drift, m.truth, on_made_contexts=m.on_made_contexts)

    def facts(self) -> dict[str, str]:
        """Return the verdict, the sizes, the drift and the path of the file."""
        m = self.manifest
        return {
            "verdict": self.verdict,
            "bytes": f"{m.bytes_in:,} → {m.bytes_out:,}",
            "drift": f"{m.drift.total:.4g} σ" + (" on made contexts" if m.on_made_contexts else ""),
            "file": str(self.emitted),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `tqs baseline` prints for the method `fp16`."""
        m = self.manifest
        degradation = {name: error.degradation for name, error in m.truth.items()}
        return {
            "out": str(self.emitted),
            "bytes_in": m.bytes_in,
            "bytes_out": m.bytes_out,
            "compression": m.bytes_in / m.bytes_out,
            "drift_measured": m.drift.total,
            "on_made_contexts": m.on_made_contexts,
            "degradation": {"worst": max(degradation.values(), default=None), **degradation},
            "manifest": str(self.manifest_file),
            "wall_s": self.wall_s,
        }


def half_control(job: BaselineJob) -> Control:
    """Convert a whole model to float16, write it and measure it.

    Parameters
    ----------
    job : BaselineJob
        Its width, rounding and serving options are not used.

    Raises
    ------
    InputError
        The conversion does not support this model (see `HalfWhole`), the file crashes the runtime, or its rollout is
        not finite.
    """
    start = time.perf_counter()
    options = job.options
    source = stages.opened(job.model, options.run, options.roles)
    data = stages.read(job.data, source, options.run, options.gates)
    name = f"{source.path.stem}.fp16.onnx"
    emitted, manifest_file = job.out / name, job.out / "control.json"
    refuse_overwriting([*with_data(emitted), manifest_file], [*source.files, *data.files.values()])
    with run_directory(job.out, [name, "control.json"], force=job.force) as begin:
        half = _half(source, options.serving)
        begin()
        with removed_on_failure(emitted):
            save_model(half.model, emitted)
            bed = stages.bed_of(source, data, options.run)
            require_loadable(emitted, bed.provider, device=bed.run.device)
            bed = bed.scaled(bed.sigma).on(data.evaluation)
            settings = job_settings(
                "baseline fp16", source.file, data.options, job.out, replace(options, roles=source.roles)
            )
            manifest = _measured(bed, source.path, emitted, options)
            manifest = manifest.model_copy(
                update={
                    "inputs": input_digests(source.path, data.files, data.digests),
                    "settings": settings,
                    "skipped": {skip.what: skip.why for skip in half.skipped},
                }
            )
            write_text(manifest_file, manifest.model_dump_json(indent=2) + "\n")
    for reason, n in Counter(skip.why for skip in half.skipped).most_common(_MOST_REASONS):
        _LOG.info("note: %d nodes or tensors: %s", n, reason)
    return Control(manifest, emitted, manifest_file, time.perf_counter() - start)


def _half(source: Source, serving: Serving) -> PassResult:
    """Return the model in float16, its graph slimmed like that of every other file."""
    settled = settled_serving(source, serving)
    weights = frozenset(w.name for w in source.survey.weights)
    slim = slim_passes(weights) if settled.graph == "slim" else ()
    half = HalfWhole().apply(Pipeline(slim).apply(source.lifted).model)
    if settled.names != "short":
        return half
    return replace(half, model=ShortNames(weights, settled.pinned).apply(half.model).model)


def _measured(bed: Testbed, source: Path, emitted: Path, options: BaselineOptions) -> ControlManifest:
    """Roll out both files and compare them."""
    found = compared(bed.stream_file(source)(), bed.stream_file(emitted)(), bed.spec, bed.contexts)
    drift, truth = (
        drift_between(found, bed.sigma, bed.contexts.source),
        truth_errors(found, bed.contexts.factors),
    )
    sizes = file_facts(source).n_bytes, file_facts(emitted).n_bytes
    gates = [parse_gate(text) for text in options.gates]
    timed = options.timing or any(needs_timing(gate) for gate in gates)
    timing = measure_timing(source, emitted, bed) if timed else None
    measured = Measured(drift, truth, sizes[0] / sizes[1], timing)
    values = [(gate, gate_value(gate, measured)) for gate in gates]
    return ControlManifest(
        inputs={},
        output=file_facts(emitted).sha256,
        versions=versions(bed.provider),
        settings={},
        bytes_in=sizes[0],
        bytes_out=sizes[1],
        drift=drift,
        truth=truth,
        timing=timing,
        gates=gate_results(values, on_made_contexts=bed.contexts.is_made),
        on_made_contexts=bed.contexts.is_made,
        skipped={},
    )
