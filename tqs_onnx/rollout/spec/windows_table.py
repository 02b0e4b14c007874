"""The `[windows]` table of a rollout spec: how contexts are cut from a table of text; see `contexts.windows`.

input = (column − mean) / std      where `scaled` says that the input is scaled
output = (target − mean) / std     where `scaled` says that the output is
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from tqs_onnx.rollout.spec.base import Count, Name, Names, Numbers, Rows, Table, as_tuple


class TableWindows(Table):
    """Splits and stride for tables whose file name matches `match` (a shell pattern); unset keys stay unchanged."""

    match: Name
    stride: Count | None = None
    train: Rows | None = None
    validation: Rows | None = None
    test: Rows | None = None


class Scaler(Table):
    """The numbers that a model's values were scaled with: `mean` and `std`, or `min` and `max`, or a `file` of them."""

    mean: Numbers | None = None
    std: Numbers | None = None
    min: Numbers | None = None
    max: Numbers | None = None
    file: Name | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Scaler:
        pairs = ((self.mean, self.std), (self.min, self.max))
        if any((a is None) != (b is None) for a, b in pairs):
            raise ValueError("mean and std, or min and max, must be given together")
        if sum(a is not None for a, _ in pairs) + (self.file is not None) != 1:
            raise ValueError("needs one of: mean and std; min and max; file")
        for first, second in pairs:
            if first is not None and second is not None and len(first) != len(second):
                raise ValueError("both lists must have the same length")
        widths = self.std or tuple(b - a for a, b in zip(self.min or (), self.max or (), strict=True))
        if any(w <= 0 for w in widths):
            raise ValueError("every std must be above 0, every max above its min")
        return self

    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (offset, width) of scaled = (value − offset) / width."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        if self.min is not None and self.max is not None:
            return self.min, tuple(b - a for a, b in zip(self.min, self.max, strict=True))
        raise ValueError("a scaler of a file is read by inputs.scaling")


class Windows(Table):
    """How contexts are cut from a table; see `contexts.windows`.

    `standardise`: each column is (x − μ) / (σ + 1e-8), μ and σ over the whole column, test rows included (A.11).
    Keys that are not given follow from the model; see `spec.completion`.
    """

    input: Name
    layout: Literal["series", "table"] | None = None
    context: Count | None = None
    horizon: Count | None = None
    stride: Count | None = None
    columns: Names | None = None
    targets: Names | None = None
    known: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    missing: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = ()
    standardise: bool = False
    scaler: Literal["train", "graph"] | Scaler | None = None
    target_scaler: Literal["train"] | Scaler | None = None
    scaled: Literal["both", "input", "output"] = "both"
    train: Rows | None = None
    validation: Rows | None = None
    test: Rows | None = None
    table: Annotated[tuple[TableWindows, ...], BeforeValidator(as_tuple)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Windows:
        if self.targets is not None and self.layout == "series":
            raise ValueError('targets need layout = "table": in a series the column itself is the target')
        if self.standardise and (self.scaler is not None or self.target_scaler is not None):
            raise ValueError("standardise and scaler cannot be combined")
        for key, names in (("columns", self.columns), ("targets", self.targets)):
            if names is not None and len(set(names)) < len(names):
                raise ValueError(f"{key} names a column twice")
        return self
