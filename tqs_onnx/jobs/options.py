"""The options of a job: one value, filled by every entry point, that determines the result; the manifest records it.

Options are frozen dataclasses; they hold the defaults of the whole project. `settings_of` writes every field as JSON
and `options_from` reads it back, so a manifest can be turned back into its job.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.tier_set import TierSet
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.refinement.refine import RefineOptions
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rounding.assign import DATA_AWARE, Method, RoundingOptions
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_passes.errors import InputError
from tqs_passes.grids.scales import FreeRounding
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.targets import Serving

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Everything that determines the result of a quantize job on a given model and data.

    Parameters
    ----------
    budget : Budget
    score : ScoreOptions
        How sensitivity is measured.
    plan : PlanOptions
        How bytes are spent.
    tiers : TierSet
        The precisions allowed.
    profile : {"fast", "exact", "small", "qdq"}
        Serving profile written into the file.
    serving : Serving
        The serving target and the constraints it sets.
    refine : RefineOptions
        How integers are chosen, and joint repair.
    gates : tuple of str
        Conditions that the file must meet, e.g. ``drift:p95<=0.2``.
    timing : bool
        Measure load time, memory and latency against FP32 when the file is verified, also if no gate needs them.
    save_traces : int or None
        Number of evaluation contexts whose forecasts are kept; None: up to 3, if they take at most 4 MiB.
    roles : tuple of str
        Roles set by the user, ``PATTERN=ROLE``.
    run : RunOptions
        Where rollouts run.
    """

    budget: Budget = field(default_factory=Budget)
    score: ScoreOptions = field(default_factory=ScoreOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)
    tiers: TierSet = field(default_factory=TierSet)
    profile: Profile = "fast"
    serving: Serving = field(default_factory=Serving)
    refine: RefineOptions = field(default_factory=RefineOptions)
    gates: tuple[str, ...] = ()
    timing: bool = False
    save_traces: int | None = None
    roles: tuple[str, ...] = ()
    run: RunOptions = field(default_factory=RunOptions)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The gates and the target of the budget: what the evaluation contexts must be able to tell."""
        target = self.budget.target
        return self.gates if target is None else (*self.gates, target)

    @property
    def scoring(self) -> ScoreOptions:
        """Return `score`, with the activations scored if the plan may round them."""
        if not self.plan.rounds_inputs:
            return self.score
        ranges = self.serving.kind_of_ranges if self.profile == "qdq" else None
        return replace(self.score, activations=True, ranges=ranges)

    @property
    def planning(self) -> PlanOptions:
        """Return `plan` with its objective resolved: `measured` if rounding uses data."""
        return self.plan.decided(by_data=self.refine.rounding.method in DATA_AWARE)


@dataclass(frozen=True, slots=True)
class BaselineOptions:
    """Everything that determines a uniform baseline.

    Parameters
    ----------
    bits : int
        Width of every matrix, 1 to 8.
    method : {"rtn", "mse", "unbiased", "gptq", "gptaq", "qep"}
    scales : {"rtn", "mse", "unbiased"}
        Scales on which GPTQ, GPTAQ and QEP round; they were published on `mse` scales.
    damp, act_order, alpha
        See `RoundingOptions`.
    qep_damp, qep_strength : float or None
        Damping and strength of QEP's correction. If neither is given, they are chosen on held-out contexts.
    group : int
        Values of a channel that share a scale; 0: all.
    profile, serving, gates, timing, save_traces, roles, run
        See `QuantizeOptions`.

    Raises
    ------
    InputError
        `bits` is not 1 to 8, or `group` is negative.
    """

    bits: int = 4
    method: Method = "rtn"
    scales: FreeRounding = "mse"
    damp: float = 0.01
    act_order: bool = True
    alpha: float = 0.25
    qep_damp: float | None = None
    qep_strength: float | None = None
    group: int = 0
    profile: Profile = "fast"
    serving: Serving = field(default_factory=Serving)
    gates: tuple[str, ...] = ()
    timing: bool = False
    save_traces: int | None = None
    roles: tuple[str, ...] = ()
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        """Validate `bits` and `group`."""
        if not 1 <= self.bits <= 8:
            raise InputError(f"`bits` must be 1 to 8, not {self.bits}")
        if self.group < 0:
            raise InputError(f"`group` must be at least 0, not {self.group}")

    @property
    def tune(self) -> bool:
        """Whether QEP's damping and strength are chosen on held-out contexts."""
        return self.method == "qep" and self.qep_damp is None and self.qep_strength is None

    @property
    def rounding(self) -> RoundingOptions:
        """How integers are chosen, before any tuning."""
        usual = RoundingOptions()
        return RoundingOptions(
            self.method,
            self.scales,
            self.damp,
            self.act_order,
            self.alpha,
            usual.qep_damp if self.qep_damp is None else self.qep_damp,
            usual.qep_strength if self.qep_strength is None else self.qep_strength,
        )


def settings_of(options: object) -> dict[str, Any]:
    """Return every field of an option class as nested, JSON-ready dictionaries."""
    settings: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
    return settings


def job_settings(
    command: str, model: Path | None, data: DataOptions, out: Path, options: object
) -> dict[str, Any]:
    """Return the settings of a job for its manifest; paths are relative to the run directory.

    `model` is None if it was given as a value.
    """

    def beside(path: Path) -> str:
        return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()

    limits = {name: getattr(data, name) for name in ("steps", "max_contexts", "max_eval_contexts")}
    if data.made_beside:
        limits["made_beside"] = data.made_beside
    if data.input_scale:
        limits["input_scale"] = [asdict(scale) for scale in data.input_scale]
    return {
        "command": command,
        "model": None if model is None else beside(model),
        "data": {role: beside(path) for role, path in data.files.items()} | data.made | limits,
        "in_memory": [
            *([] if model is not None else ["model"]),
            *(role for role in data.given if role not in data.files and role not in data.made),
        ],
        "options": settings_of(options),
    }


def options_from(settings: dict[str, Any], kind: type[T]) -> T:
    """Return options from their settings; missing fields take their defaults.

    Raises
    ------
    InputError
        A key is unknown, or a value does not fit its field; `where` is the path of the field, with dots.
    """
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        options = adapter.validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise InputError("is required by other options that are given", where=path) from error
        raise InputError(f"{first['msg']}, not {first['input']!r}", where=path) from error
    unknown = _unknown(settings, adapter.dump_python(options, mode="json"), "")
    if unknown:
        raise InputError("is not an option", where=unknown[0], todo="Correct its name or remove it")
    return options


def _unknown(given: object, known: object, path: str) -> list[str]:
    """Return the paths of the given keys that match no field."""
    if not isinstance(given, dict) or not isinstance(known, dict):
        return []
    found: list[str] = []
    for key, value in given.items():
        here = f"{path}.{key}" if path else str(key)
        found += _unknown(value, known[key], here) if key in known else [here]
    return found
