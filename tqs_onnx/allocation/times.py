"""Times of the forms of weights on one machine: the file `times.json`, written by `tqs_onnx.allocation.measure_times`.

Times are shares of the time of one call of the FP32 file, all from interleaved runs ::

    predicted latency of a file = base + Σ over its weights of share(weight, form)

`base` is the file with every weight unchanged. Predictions hold for the machine, the threads and the batch that the
table names, and the table is an input of allocation: the same table gives the same plan.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError
from tqs_passes.plan.plan import Assignment

TIMES_NAME = "times.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimedForm(_Frozen):
    """The time that a form adds at each of some weights of one shape, compared with the unchanged weight.

    Attributes
    ----------
    form : Form
    weights : tuple of str
    share : float
        Share of FP32's time, per weight; negative if the form is faster.
    """

    form: Form
    weights: tuple[str, ...]
    share: float

    def covers(self, a: Assignment) -> bool:
        """Return whether this is the time of an assignment."""
        return self.form is a.form and a.weight in self.weights


class TimeTable(_Frozen):
    """The file `times.json`.

    Attributes
    ----------
    version : int
    source_sha256 : str
    processor, runtime, provider : str
        The CPU, the version of onnxruntime, and the execution provider.
    threads, batch : int
    rounds : int
        Number of calls of every file, at least.
    fp32_ms : float
        Median time of one call of the FP32 file.
    base : float
        Share of the file with every weight unchanged; 1 if nothing else is changed.
    forms : tuple of TimedForm
    checked, summed : float
        Share of the file in which every weight has its fastest form, as measured and as the sum of single shares; the
        stored shares are scaled so that their sum equals the measurement.
    """

    version: Literal[1] = 1
    source_sha256: str
    processor: str
    runtime: str
    provider: str
    threads: int
    batch: int
    rounds: int
    fp32_ms: float
    base: float
    forms: tuple[TimedForm, ...]
    checked: float
    summed: float

    def ratio_of(self, a: Assignment) -> float:
        """Return the share that an assignment adds; 0 for forms that are folded at load or were not timed."""
        return next((t.share for t in self.forms if t.covers(a)), 0.0)

    def to_json(self) -> str:
        """Return the table as JSON, two-space indented, keys in schema order, newline at the end."""
        return self.model_dump_json(indent=2) + "\n"


def read_times(path: Path) -> TimeTable:
    """Read `times.json`.

    Raises
    ------
    InputError
        The file cannot be read, or is not a table of this version.
    """
    try:
        return TimeTable.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            "is not a table of times of this version", where=str(path), todo="Remove it, to measure again"
        ) from error
