"""The numbers by which `[windows]` scales what a model takes and gives: scaled = (value − offset) / width.

A side of the model that is not scaled has offset 0 and width 1. The output's numbers are those of `target_scaler`, else
those of the target's column in `scaler`.
"""

from __future__ import annotations

from tqs_onnx.rollout.spec.windows_table import Scaler, Windows
from tqs_passes.errors import InputError

_WHERE = "rollout.toml windows"
_NONE = (0.0, 1.0)


def of_column(windows: Windows, index: int) -> tuple[float, float]:
    """Return (offset, width) of a column of the input; of a single pair of numbers, that pair."""
    if windows.scaler is None or windows.scaled == "output":
        return _NONE
    return _at(windows.scaler, index, "scaler")


def of_target(windows: Windows, index: int) -> tuple[float, float]:
    """Return (offset, width) of a target, or without `targets` of a column, as the output holds it.

    Raises
    ------
    InputError
        The target is no column of the input and has no numbers of its own.
    """
    if windows.scaled == "input" or (windows.scaler is None and windows.target_scaler is None):
        return _NONE
    if windows.target_scaler is not None:
        return _at(windows.target_scaler, index, "target_scaler")
    if windows.scaler is None or windows.targets is None:
        return _at(windows.scaler, index, "scaler")
    name = windows.targets[index]
    if windows.columns is None or name not in windows.columns:
        raise InputError(
            f"the scaler has no numbers for target {name!r}, which is no column of the input",
            where=_WHERE,
            todo="Set windows.target_scaler",
        )
    return _at(windows.scaler, windows.columns.index(name), "scaler")


def _at(scaler: Scaler | str | None, index: int, key: str) -> tuple[float, float]:
    if scaler is None:
        return _NONE
    if isinstance(scaler, str) or scaler.file is not None:
        raise InputError(
            f"the numbers of windows.{key} are not known here",
            where=_WHERE,
            todo="Give a table as contexts, or mean and std",
        )
    offsets, widths = scaler.affine()
    if len(offsets) > 1 and index >= len(offsets):
        raise InputError(
            f"windows.{key} has {len(offsets)} numbers, fewer than there are columns",
            where=_WHERE,
            todo="Give a number for each, or one for all",
        )
    place = 0 if len(offsets) == 1 else index
    return offsets[place], widths[place]
