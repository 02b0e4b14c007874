"""The scores of a model: `scores.json`, and `scores.csv` (the paper's `calculated_metrics.csv`)."""

from __future__ import annotations

import csv
import io
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer
from scipy.stats import spearmanr

from tqs_onnx.rollout.placement import Placement
from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.plan.probe import ProbeKind
from tqs_onnx.shown import Shown
from tqs_passes.encode.static import Range
from tqs_passes.errors import InputError
from tqs_passes.files.text import LARGE, read_text
from tqs_passes.weights import Role

#: Number of weights that a summary names.
_SHOWN = 5
#: Minimum number of common scores for a rank correlation.
_FEWEST_RANKED = 3
#: If A changes by more than this factor between probe sizes, the response is saturated or chaotic, not linear.
LINEAR_WITHIN = 2.0


class Status(StrEnum):
    """The status of a scored weight.

    `alive`: the probe moved the trajectory. `dead`: a non-zero probe moved nothing beyond the noise floor.
    `below-floor`: the probe moved the trajectory no more than a change of the initial state by one unit in the last
    place. `unprobed`: the probe was zero (all-ones scales under a quant probe). `off-trajectory`: the weight reaches
    only graph outputs outside the trajectory. `unseen`: no context ran it, because it lies in a branch or loop that
    none entered, or because none selected it; such a weight keeps 8 bits or more. `unstable`: the probe made the
    rollout NaN or infinite; such a weight always keeps its original precision.
    """

    ALIVE = "alive"
    DEAD = "dead"
    BELOW_FLOOR = "below-floor"
    UNPROBED = "unprobed"
    OFF_TRAJECTORY = "off-trajectory"
    UNSEEN = "unseen"
    UNSTABLE = "unstable"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ResponsePoint(_Frozen):
    """The response to a probe of one size: ‖δθ‖² and the measured amplification A(T_max)."""

    delta_sq: float
    amplification: float


class WeightScore(_Frozen):
    """Scores of one weight under one probe; the numbers are None unless the weight is alive.

    Attributes
    ----------
    weight, label : str
    role : Role or None
        Bucket of A.8; None in files of earlier versions.
    shape : tuple of int
    status : Status
    gamma : tuple of float or None, or None
        γ(T) of Eq. 2 at each horizon, mean over contexts and draws; None at horizons below the floor.
    unseen : str
        What no context ran: the weight itself (status `unseen`) or rows of it, in words; empty if every part was run.
    block : str
        The block it was scored with; empty if scored by itself.
    gamma_stderr, gamma_task, gamma_task_stderr, gamma_task_mean, a_max, amplification, growth : float or None
        See `tqs_onnx.scoring.measure.gamma`.
    convergence : tuple of float or None
        γ(T) / γ(T_max) at each horizon.
    variables : dict of str to float
        Amplification of each variable by itself: Σ (ΔY/σ_v)² / ‖δθ‖², mean over contexts and draws.
    session : int or None
        The session it was perturbed in, whose floors apply; None if it was not perturbed.
    steps : int
        Model calls of its longest rollout; fewer than the horizon after an early stop.
    delta_norm : float
        ‖δθ‖_F, root mean square over draws.
    draws : int
    response : tuple of ResponsePoint
        A at every probe size, smallest first; constant if the response is linear.
    readers : tuple of str
        ``operator:input`` of each reader.
    """

    weight: str
    label: str
    shape: tuple[int, ...]
    status: Status
    role: Role | None = None
    unseen: str = ""
    block: str = ""
    gamma: tuple[float | None, ...] | None = None
    gamma_stderr: float | None = None
    gamma_task: float | None = None
    gamma_task_stderr: float | None = None
    gamma_task_mean: float | None = None
    convergence: tuple[float | None, ...] | None = None
    a_max: float | None = None
    amplification: float | None = None
    variables: dict[str, float] = {}
    growth: float | None = None
    session: int | None = None
    steps: int = 0
    delta_norm: float = 0.0
    draws: int = 0
    response: tuple[ResponsePoint, ...] = ()
    readers: tuple[str, ...] = ()

    @property
    def nonlinearity(self) -> float | None:
        """A at the largest probe over A at the smallest: 1 if errors scale; None with a single size."""
        if len(self.response) < 2 or self.response[0].amplification <= 0:
            return None
        return self.response[-1].amplification / self.response[0].amplification

    @property
    def is_linear(self) -> bool | None:
        """Whether A changes less than twofold from the smallest probe to the largest; None with a single size."""
        ratio = self.nonlinearity
        return None if ratio is None else 1 / LINEAR_WITHIN <= ratio <= LINEAR_WITHIN


class ActivationScore(_Frozen):
    """The response to rounding one reader's input to 8 bits at every call (`tqs_onnx.scoring.activations`).

    Attributes
    ----------
    weight, label : str
        The weight that the reader multiplies with.
    energy : float
        ‖ΔY‖² of one context over the whole rollout, mean over contexts.
    delta_norm : float
        Norm of the rounding error over all steps of one context.
    gamma, gamma_task, amplification, growth : see `WeightScore`
        None if nothing moved.
    finite : bool
        False if the rollout became NaN or infinite.
    ranges : tuple of Range
        The ranges fixed in advance that were rounded with; empty, and left out of the file, if every call has its own.
    """

    weight: str
    label: str
    energy: float = 0.0
    delta_norm: float
    gamma: tuple[float | None, ...] | None = None
    gamma_task: float | None = None
    amplification: float | None = None
    growth: float | None = None
    finite: bool = True
    ranges: tuple[Range, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        return found if self.ranges else {k: v for k, v in found.items() if k != "ranges"}


class ProbeFacts(_Frozen):
    """Settings of the probe (see `tqs_onnx.scoring.plan.probe.Probe`), and the widths of the response probes."""

    kind: ProbeKind
    bits: int
    response_bits: tuple[int, ...]
    per_channel: bool
    draws: int
    seed: int


class Scores(_Frozen, Shown):
    """The scores of a model.

    Attributes
    ----------
    version : int
    source_sha256, rollout_sha256, contexts_sha256 : str
    provider, runtime : str
        Execution provider, and version of onnxruntime.
    probe : ProbeFacts
    horizons : tuple of int
        Steps.
    units : str
        `std`: divergence in units of each variable's σ; `raw`: in the data's own units.
    sigma : dict of str to float
        σ_v, frozen here and reused by verify.
    n_contexts, n_values : int
        Number of scoring contexts; number N of values in one context's trajectory.
    noise_floor : float
        The highest noise floor of any session.
    rounding_floor : float
        The highest rounding floor of any session.
    floors : tuple of Floors
        The two floors of each session; a weight is judged by those of its own session.
    sessions : int
        Number of sessions that the weights were distributed over.
    rollouts_saved : float
        Share of the model calls that early stop and group tests saved; the calls of the tests themselves are not
        counted.
    placement : Placement or None
        Where the nodes ran; left out of the file on the CPU, and if the runtime does not say.
    weights : tuple of WeightScore
        In graph order.
    activations : tuple of ActivationScore
        In graph order; empty, and left out of the file, unless they were asked for.
    """

    version: Literal[1] = 1
    source_sha256: str
    rollout_sha256: str
    contexts_sha256: str
    provider: str
    runtime: str
    probe: ProbeFacts
    horizons: tuple[int, ...]
    units: Literal["std", "raw"]
    sigma: dict[str, float]
    n_contexts: int
    n_values: int
    noise_floor: float
    rounding_floor: float = 0.0
    floors: tuple[Floors, ...] = ()
    sessions: int = 1
    rollouts_saved: float = 0.0
    placement: Placement | None = None
    weights: tuple[WeightScore, ...]
    activations: tuple[ActivationScore, ...] = ()

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        absent = {name for name in ("activations", "placement") if not getattr(self, name)}
        return {k: v for k, v in found.items() if k not in absent}

    def facts(self) -> dict[str, str]:
        """Return the number of weights of each status, the most sensitive weights, and the floors."""
        counts = {s.value: sum(w.status is s for w in self.weights) for s in Status}
        alive = [w for w in self.weights if w.gamma_task is not None]
        alive.sort(key=lambda w: (-(w.gamma_task or 0.0), w.weight))
        top = ", ".join(f"{w.label} {w.gamma_task:.3g}" for w in alive[:_SHOWN])
        unseen = ", ".join(w.label for w in self.weights if w.unseen)
        return {
            "weights": ", ".join(f"{n} {name}" for name, n in counts.items() if n),
            **({"unseen": unseen} if unseen else {}),
            "most sensitive (γ_task)": top,
            "probe": f"{self.probe.kind.value}, {self.n_contexts} contexts, {self.horizons[-1]} steps",
            "floors": f"noise {self.noise_floor:.3g}, rounding {self.rounding_floor:.3g}",
            **({"placement": str(self.placement)} if self.placement else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the content of scores.json."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Return the scores as JSON, two-space indented, keys in schema order, newline at the end."""
        return self.model_dump_json(indent=2) + "\n"

    def to_csv(self) -> str:
        """Return one row per weight: name, role, status, γ per horizon, γ_task, A_max, …, and A of each variable."""
        stream = io.StringIO()
        _write_row(
            stream,
            [
                *("weight", "label", "role", "shape", "status", "unseen"),
                *(f"gamma_T{t}" for t in self.horizons),
                *(f"convergence_T{t}" for t in self.horizons),
                *("gamma_stderr", "gamma_task", "gamma_task_stderr", "gamma_task_mean", "a_max"),
                *(
                    "amplification",
                    "growth",
                    "nonlinearity",
                    "linear",
                    "delta_norm",
                    "draws",
                    "block",
                    "readers",
                ),
                *(f"amplification[{variable}]" for variable in self.sigma),
            ],
        )
        for w in self.weights:
            gamma = w.gamma or (None,) * len(self.horizons)
            ratios = w.convergence or (None,) * len(self.horizons)
            _write_row(
                stream,
                [
                    *(w.weight, w.label, w.role.value if w.role else ""),
                    *("x".join(map(str, w.shape)), w.status.value, w.unseen),
                    *gamma,
                    *ratios,
                    *(w.gamma_stderr, w.gamma_task, w.gamma_task_stderr, w.gamma_task_mean, w.a_max),
                    *(w.amplification, w.growth, w.nonlinearity, w.is_linear),
                    *(w.delta_norm, w.draws, w.block, " ".join(w.readers)),
                    *(w.variables.get(variable) for variable in self.sigma),
                ],
            )
        return stream.getvalue()


def _write_row(stream: io.StringIO, row: list[object]) -> None:
    """Write a row; `csv` does not quote carriage returns, which readers take for the end of the row."""
    bare = any("\r" in cell for cell in row if isinstance(cell, str))
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerow(
        row
    )


def read_scores(path: Path) -> Scores:
    """Read `scores.json`.

    Raises
    ------
    InputError
        The file is missing, is not JSON, has another version, or has unknown or ill-typed keys.
    """
    try:
        return Scores.model_validate_json(read_text(path, LARGE))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError("is not a text file", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"holds no scores of this version ({key}: {first['msg']})",
            where=str(path),
            todo="Give a scores.json that tqs score wrote, or run tqs score again",
        ) from error


def spearman(a: Scores, b: Scores) -> float | None:
    """Return Spearman's rank correlation of γ_task between two probes (paper, A.10).

    Counts the targets that are alive under both probes, a block once. None with fewer than three, or if all tie.
    """
    theirs = {s.weight: s.gamma_task for s in b.weights if s.gamma_task is not None}
    pairs: dict[str, tuple[float, float]] = {}
    for score in a.weights:
        other = theirs.get(score.weight)
        if score.gamma_task is not None and other is not None:
            pairs.setdefault(score.block or f"\0{score.weight}", (score.gamma_task, other))
    if len(pairs) < _FEWEST_RANKED:
        return None
    x, y = (np.array(side) for side in zip(*pairs.values(), strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(spearmanr(x, y).statistic)
