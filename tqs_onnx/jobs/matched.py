"""Uniform baselines of a sweep: their files, whose bytes are then the budget of every series of the sweep.

    W2   rtn  gptq  gptaq  qep   ──▶ the smallest of their files ──▶ our points within its bytes
    W3   …

Baselines are rounded as `tqs baseline` rounds them: every matrix at one width on least-squares scales, the rest FP16,
QEP with the best of its settings on held-out contexts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tqs_onnx.inputs.source import Source
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions
from tqs_onnx.refinement.instruments import Instruments
from tqs_onnx.rounding.assign import Assigned, Method, round_plan
from tqs_onnx.rounding.codes_file import codes_digest
from tqs_onnx.rounding.tune import qep_settings

#: The objective of a point that is a uniform baseline; its solver is the method.
UNIFORM = "uniform"


@dataclass(frozen=True, slots=True)
class Uniform:
    """A uniform baseline, rounded.

    Parameters
    ----------
    method : str
    bits : int
    assigned : Assigned
    calibrate_s : float
        Seconds that calibration, tuning and rounding took.
    """

    method: Method
    bits: int
    assigned: Assigned
    calibrate_s: float


def uniform_files(
    source: Source,
    instruments: Instruments,
    options: QuantizeOptions,
    methods: Sequence[Method],
    bits: int,
) -> Iterator[Uniform]:
    """Yield the baselines of one width, each rounded by its method.

    Raises
    ------
    InputError
        The width is not 1 to 8, or the model's opset cannot store integers.
    """
    plan = unscored_uniform_plan(source, bits, options.profile, options.serving)
    for method in methods:
        start = time.perf_counter()
        given = BaselineOptions(bits=bits, method=method)
        rounding = given.rounding
        if given.tune:
            rounding, _ = instruments.tuner.best(plan, qep_settings(rounding))
        assigned = round_plan(plan, instruments.calibration, rounding)
        if assigned.codes:
            known = assigned.plan.model_copy(update={"codes_sha256": codes_digest(assigned.codes)})
            assigned = replace(assigned, plan=known)
        yield Uniform(method, bits, assigned, time.perf_counter() - start)
