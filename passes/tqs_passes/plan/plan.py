"""The plan: the tier of every weight, and how it is stored. The file is `plan.json`.

The paper's counterpart is `precision_assignments.json`.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from tqs_passes.encode.nbits import fits, fits_wide
from tqs_passes.encode.static import Range
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.errors import InputError
from tqs_passes.files.text import LARGE, read_text
from tqs_passes.grids.grid import Grid, grids_for
from tqs_passes.grids.row_tiers import MOST_WIDTHS, distinct_widths, nearest_tier
from tqs_passes.tier import KEEP_TIER, Tier

#: Forms that can decode row tiers.
ROW_FORMS = (Form.CAST_MUL, Form.DEQUANTIZE, Form.DYNAMIC)

#: Integers of a form that are stored in ONNX's own types, where they differ from the usual ones.
_NATIVE = {Form.STATIC: (Tier.INT8, Tier.INT7)}


class ServingTarget(StrEnum):
    """The runtime that serves the file (see `tqs_passes.plan.targets`)."""

    ORT_CPU = "ort-cpu"
    ORT_CUDA = "ort-cuda"
    TENSORRT = "tensorrt"
    PORTABLE = "portable"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", allow_inf_nan=True)


class Compute(_Frozen):
    """The blocks that compute with 16-bit floats (see `tqs_passes.transforms.half_precision`).

    Attributes
    ----------
    dtype : {"float16", "bfloat16"}
    blocks : str or None
        Pattern for labels of weights and names of nodes; None: every node that supports the type.
    """

    dtype: Literal["float16", "bfloat16"]
    blocks: str | None = None


class Assignment(_Frozen):
    """How one weight is stored.

    Attributes
    ----------
    weight, label : str
        Name of the initializer in the lifted graph, and its label.
    shape : tuple of int
    dtype : str
        Data type that its readers expect: the source's, or that of the block that computes with it.
    tier : Tier
    grid : Grid or None
        Levels of an integer tier.
    axis : int or None
        Channel axis of the scales; None when the tensor has one scale.
    half_scales : bool
        Scales are stored as float16.
    rows : str
        Row tiers: the width of every channel along `axis`, one digit each; empty when all have the tier's width. With
        row tiers, `tier` is the one nearest to their mean.
    group : int
        Number of values of a matrix channel that share a scale; 0: all. For the weight of a grouped ConvTranspose,
        the input channels of a group: its scales belong to pairs of a group and an output channel.
    form : Form
        How the graph decodes it.
    encoding : Encoding
        How the levels of an integer tier are stored.
    ranges : tuple of Range
        Form `static`: the ranges of the reader's input and, for a Conv, of its output; left out of the file otherwise.
    rounding : str
        How integers were chosen: `rtn`, `mse` and `unbiased` need only the weight; others read `codes.npz`.
    n_bytes : int
        Bytes this weight adds to the file: values, scales, names and nodes; shared tables are not counted.
    error_energy : float
        ‖Q(θ) − θ‖², squared Frobenius norm of the rounding error.
    gamma : float or None
        γ_task of Eq. 1 that the allocator used; None when there is none (dead, unprobed).
    amplification : float
        A of design: mean ‖ΔY‖² / ‖δθ‖², ΔY in units of each variable's σ.
    cost : float
        Predicted ‖ΔY‖² of one context due to this weight.
    dead : bool
    unseen : str
        What of it no scoring context ran, in words; it then has 8 bits or more. Empty if every part was run.
    block : str
        Tie group whose members share a tier; empty for a single weight.
    """

    weight: str
    label: str
    shape: tuple[int, ...]
    dtype: str
    tier: Tier
    grid: Grid | None = None
    axis: int | None = Field(default=None, ge=0)
    half_scales: bool = False
    rows: str = Field(default="", pattern=r"^[1-8]*$")
    group: int = Field(default=0, ge=0)
    form: Form
    encoding: Encoding = Encoding.PLANES
    ranges: tuple[Range, ...] = ()
    rounding: Literal["keep", "cast", "rtn", "mse", "unbiased", "gptq", "gptaq", "qep"]
    n_bytes: int = Field(ge=0)
    error_energy: float = Field(ge=0)
    gamma: float | None = None
    amplification: float = 0.0
    cost: float = 0.0
    dead: bool = False
    unseen: str = ""
    block: str = ""

    @model_serializer(mode="wrap")
    def _without_ranges(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        return found if self.ranges else {k: v for k, v in found.items() if k != "ranges"}

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of an integer tier's codes, ascending: one, except with row tiers."""
        if not self.tier.is_integer:
            return ()
        return distinct_widths(self.rows) if self.rows else (self.tier.bits,)

    @property
    def least_bits(self) -> int:
        """Bits of a stored value; with row tiers, of the narrowest channel."""
        return self.widths[0] if self.rows else self.tier.bits

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        """Refuse a form, grid or axis that does not fit the tier and shape."""
        if self.dtype not in KEEP_TIER:
            raise ValueError(f"{self.dtype!r} is not a data type of a weight")
        if self.tier.is_integer:
            if self.form in (Form.KEEP, Form.CAST) or (
                self.form is Form.NBITS
                and not any(f(self.tier.bits, self.grid or Grid.SIGNED) for f in (fits, fits_wide))
            ):
                raise ValueError(f"form {self.form} does not decode {self.tier}")
            if self.grid is None or not (self.rows or self.grid in grids_for(self.tier.bits)):
                raise ValueError(f"{self.tier} has no grid {self.grid}")
            if self.encoding is Encoding.NATIVE and (
                self.grid is not Grid.SIGNED
                or self.tier not in _NATIVE.get(self.form, (Tier.INT8, Tier.INT4))
            ):
                raise ValueError(f"{self.tier} on the {self.grid} grid has no native type")
            if self.axis is not None and self.axis >= len(self.shape):
                raise ValueError(f"a weight of {len(self.shape)} dimensions has no axis {self.axis}")
        elif self.form is Form.KEEP:
            if self.tier is not KEEP_TIER[self.dtype]:
                raise ValueError(f"a weight kept as {self.dtype} cannot have the tier {self.tier}")
        elif self.form is not Form.CAST or self.tier is Tier.FP64:
            raise ValueError(f"form {self.form} does not decode {self.tier}")
        if self.form is Form.DYNAMIC:
            self._require_product()
        if (self.form is Form.STATIC) != bool(self.ranges) or len(self.ranges) > 2:
            raise ValueError("one or two ranges belong to the form static, and to no other")
        if self.form is Form.STATIC and (
            self.tier not in _NATIVE[self.form] or self.encoding is not Encoding.NATIVE
        ):
            raise ValueError(f"form {self.form} needs native INT8 or INT7")
        if self.rows:
            self._require_row_tiers()
        if self.group:
            self._require_groups()
        return self

    def _require_product(self) -> None:
        matrix = len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[0] == 1)
        if not matrix or self.dtype != "float32" or self.encoding is not Encoding.PLANES:
            raise ValueError(f"form {self.form} needs a float32 matrix, stored as bit planes")

    def _require_groups(self) -> None:
        turned = len(self.shape) > 2 and self.axis == 1
        if (
            self.axis is None
            or not (len(self.shape) == 2 or turned)
            or self.rows
            or self.form is not Form.CAST_MUL
        ):
            raise ValueError(
                "groups need a matrix, or channels along axis 1, with scales per channel, one width, and a form of "
                "Cast and Mul"
            )
        if self.encoding is not Encoding.PLANES or self.shape[1 - self.axis] % self.group:
            raise ValueError(
                f"groups of {self.group} need bit planes and must divide channels of {self.shape[1 - self.axis]}"
            )

    def _require_row_tiers(self) -> None:
        if not self.tier.is_integer or self.axis is None or self.encoding is not Encoding.PLANES:
            raise ValueError("row tiers need an integer tier with scales per channel, stored as bit planes")
        if self.form not in ROW_FORMS:
            raise ValueError(f"form {self.form} does not decode row tiers")
        if len(self.rows) != self.shape[self.axis]:
            raise ValueError(f"{len(self.rows)} row tiers do not fit {self.shape[self.axis]} channels")
        if not 2 <= len(self.widths) <= MOST_WIDTHS:
            raise ValueError(f"row tiers have 2 to {MOST_WIDTHS} widths, not {len(self.widths)}")
        if self.tier is not nearest_tier(self.rows):
            raise ValueError(f"row tiers of this mean width need {nearest_tier(self.rows)}, not {self.tier}")


class SolverFacts(_Frozen):
    """The result of the allocator.

    Attributes
    ----------
    solver, objective : str
    cost, bound, gap : float
        Objective value, its proven lower bound, and their relative difference.
    optimal : bool
    p_fp32 : float
        Fraction of the FP32 bytes that was protected.
    budget_bytes : int
        Largest file size allowed, in bytes.
    saturated : bool
        More bytes would not lower the cost: every weight left to the solver has its cheapest tier.
    """

    solver: str
    objective: str
    cost: float
    bound: float
    gap: float
    optimal: bool
    p_fp32: float
    budget_bytes: int
    saturated: bool = False


#: A prediction from fewer starts, or in which one context has a larger share of the squares, says so.
FEW_STARTS = 8
HEAVY_SHARE = 0.5
#: What a predicted drift was found on; see `Prediction`.
Basis = Literal["scoring", "held-out", "cross-fit"]


class Prediction(_Frozen):
    """The drift that a plan's file is expected to have on contexts that chose none of its integers.

    Attributes
    ----------
    drift : float
        All weights together, rolled out before a file is written; infinite if a rollout is not finite.
    low, high : float
        Bounds of a 90 % bootstrap interval over contexts.
    n_contexts, n_starts : int
        Contexts, and rows of a table that they start at: as many if they are not of a table.
    largest_share : float
        Share of the context that drifts most in the sum of squares.
    basis : str
        `scoring`: the weights alone decide the integers, judged on the scoring contexts; `held-out`: other contexts
        chose them; `cross-fit`: each half of the scoring contexts chose integers that the other half judged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    drift: float
    low: float
    high: float
    n_contexts: int
    n_starts: int
    largest_share: float
    basis: Basis

    def __str__(self) -> str:
        """Return the drift, its interval, and what limits their worth."""
        starts = (
            ""
            if self.n_starts == self.n_contexts
            else f" of {self.n_starts} start{'s' * (self.n_starts > 1)}"
        )
        few = f"from {self.n_contexts} contexts{starts} only"
        caveats = [few] if self.n_starts < FEW_STARTS else []
        if self.n_contexts > 2 and self.largest_share > HEAVY_SHARE:
            caveats.append(f"one context makes up {100 * self.largest_share:.0f} % of it")
        line = f"{self.drift:.4g} ({self.low:.4g} to {self.high:.4g}"
        return "; ".join([line, *caveats]) + ")"


class Tried(_Frozen):
    """A plan that was compared with others on contexts that chose none of its integers.

    Attributes
    ----------
    name : str
        How its choices were found.
    rounding : str
        How its integers were chosen.
    n_bytes : int
    drift : float
        Joint drift on these contexts; infinite if a rollout is not finite.
    at_best : float
        The least drift that its file may have; less than `drift` where half of the contexts chose the integers that
        were judged, and all choose those of the file. The least decides.
    low, high : float
        Bounds of a 90 % bootstrap interval, over contexts, of its drift over that of the chosen plan.
    chosen : bool
        Whether the file is written from this plan.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    name: str
    rounding: str
    n_bytes: int
    drift: float
    at_best: float
    low: float
    high: float
    chosen: bool = False


class TimeFacts(_Frozen):
    """The predicted time of a file.

    Attributes
    ----------
    predicted : float
        Time of one call over that of FP32.
    limit : float or None
        The most that was allowed.
    batch, threads : int
    processor : str
        Where the times were measured.
    """

    predicted: float
    limit: float | None = None
    batch: int
    threads: int
    processor: str


class Plan(_Frozen):
    """A mixed-precision plan for one model.

    Attributes
    ----------
    version : int
        Version of this schema.
    source_sha256 : str
        Digest of the `.onnx` file that the plan belongs to.
    profile : str
        Serving profile: `fast`, `exact`, `small` or `qdq`.
    assignments : tuple of Assignment
        In graph order.
    n_bytes : int
        Predicted size in bytes of the emitted file.
    source_bytes : int
        Size in bytes of the input file, external data included.
    predicted_drift : float or None
        That of `prediction`; before anything was rolled out, the added drift. None when nothing was scored, or when no
        context is left to predict on.
    added_drift : float or None
        sqrt(Σ cost / N), N values of one context's trajectory: the errors of single weights as if uncorrelated.
    joint_drift : float or None
        Drift of all weights together on the scoring contexts, also where these chose the integers; None when it was not
        measured.
    prediction : Prediction or None
        The predicted drift with its interval; None when nothing was rolled out.
    codes_sha256 : str or None
        Digest of the codes that the weights were rounded to (`codes.npz`); None when the weights alone decide them.
    target : ServingTarget
        The runtime that the file is made for.
    constants : str
        `small`: tensors that are not weights are stored losslessly in fewer bytes; `keep`: they are unchanged.
    opset : int or None
        The model is converted to this opset; None: it keeps its opset.
    compute : Compute or None
        Blocks that compute with 16-bit floats; None: no block does.
    names : str
        `short`: inner values have names of one to three letters; `keep`: they keep their names.
    graph : str
        `slim`: the graph itself is made smaller, losslessly; `keep`: it is unchanged.
    pinned : tuple of str
        Patterns of names that stay.
    solver : SolverFacts or None
    warnings : tuple of str
    tried : tuple of Tried
        The plans that this one was chosen from; left out of the file if no others were compared.
    time : TimeFacts or None
        Left out of the file unless times were measured.
    """

    version: Literal[1] = 1
    source_sha256: str
    profile: Literal["fast", "exact", "small", "qdq"]
    assignments: tuple[Assignment, ...]
    n_bytes: int
    source_bytes: int
    predicted_drift: float | None = None
    added_drift: float | None = None
    joint_drift: float | None = None
    prediction: Prediction | None = None
    codes_sha256: str | None = None
    target: ServingTarget = ServingTarget.ORT_CPU
    constants: Literal["small", "keep"] = "keep"
    opset: int | None = None
    compute: Compute | None = None
    names: Literal["short", "keep"] = "keep"
    graph: Literal["slim", "keep"] = "keep"
    pinned: tuple[str, ...] = ()
    solver: SolverFacts | None = None
    warnings: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    time: TimeFacts | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        absent = {name for name in ("time", "tried") if not getattr(self, name)}
        return {k: v for k, v in found.items() if k not in absent}

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        """Refuse a weight that is assigned twice."""
        names = [a.weight for a in self.assignments]
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"weight {twice!r} is assigned twice")
        return self

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of the weights with scales, names and nodes (without shared tables)."""
        return sum(a.n_bytes for a in self.assignments)

    def to_json(self) -> str:
        """Return the plan as JSON, two-space indented, keys in schema order, newline at the end."""
        return self.model_dump_json(indent=2) + "\n"

    def digest(self) -> str:
        """Return the SHA-256 of everything that decides the emitted bytes, and how the file is judged (its profile)."""
        decisive = [
            [
                a.weight,
                a.tier,
                a.grid,
                a.axis,
                a.half_scales,
                a.group,
                a.form,
                a.encoding,
                a.rounding,
                None,  # kept, so that digests of plans did not change when equal weights became one
                a.rows,
                *([[r.kind, r.scale, r.zero_point] for r in a.ranges]),
            ]
            for a in self.assignments
        ]
        rest: list[object] = [] if self.compute is None else [[self.compute.dtype, self.compute.blocks]]
        if (self.names, self.graph, self.pinned) != ("keep", "keep", ()):
            rest.append([self.names, self.graph, self.pinned])
        text = json.dumps(
            [
                self.source_sha256,
                self.profile,
                self.constants,
                self.opset,
                self.codes_sha256,
                decisive,
                *rest,
            ],
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """Read `plan.json`.

    Raises
    ------
    InputError
        The file is missing, not JSON, of another version, or has unknown or ill-typed keys.
    """
    try:
        return Plan.model_validate_json(read_text(path, LARGE))
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            where=str(path),
            todo="Give the plan.json that tqs allocate wrote",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            "is not a text file", where=str(path), todo="Give the plan.json that tqs allocate wrote"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "document"
        raise InputError(
            f"is not a plan of this version ({key}: {first['msg']})",
            where=str(path),
            todo="Give the plan.json that tqs allocate wrote",
        ) from error
