"""Write the files of a job on a Pangu-shaped model: model.onnx, rollout.toml, contexts.npz and eval.npz."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from tqs_models.pangu import climate, rollout
from tqs_models.pangu.shaped import PanguShape, build
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model

_NUMBERS = ("dim", "heads")


def write_shaped(
    folder: Path,
    checkpoint: Path | None,
    grid: tuple[int, int] | None,
    levels: tuple[int, ...] | None,
    seed: int,
    contexts: int,
    settings: Mapping[str, str],
) -> tuple[Path, ...]:
    """Write a Pangu-shaped model with random weights into `folder`.

    Parameters
    ----------
    folder : Path
        Must exist.
    checkpoint : Path or None
        Must be None: the released file is an ONNX file already.
    grid : tuple of int or None
        Latitudes and longitudes; default 721 x 96, which has all 276.66 M weights.
    levels : tuple of int or None
        Only the number of levels matters; default 13.
    seed : int
    contexts : int
        Number of random states written to contexts.npz, and of others written to eval.npz; 0: neither is written.
    settings : mapping of str to str
        Fields of `PanguShape` by name, tuples as "2,6,12"; and `opset`.

    Returns
    -------
    tuple of Path
        The files written, the model first.

    Raises
    ------
    InputError
        A checkpoint is given, or a setting is unknown or has an invalid value.
    """
    if checkpoint is not None:
        raise InputError(
            "pangu_weather_6.onnx needs no export",
            where=str(checkpoint),
            todo=f"Use it directly, with {rollout()}",
        )
    given = dict(settings)
    opset = int(given.pop("opset", "17"))
    sizes: dict[str, Any] = {}
    if grid is not None:
        sizes["lat"], sizes["lon"] = grid
    if levels is not None:
        sizes["levels"] = len(levels)
    for name, text in given.items():
        sizes[name] = _value(name, text)
    shape = PanguShape(**sizes)
    written = [folder / "model.onnx", folder / "rollout.toml"]
    save_model(Model(build(shape, seed, opset=opset), folder), written[0])
    shutil.copyfile(rollout(), written[1])
    if contexts:
        for name, offset in (("contexts.npz", 1), ("eval.npz", 2)):
            arrays: dict[str, Any] = dict(
                climate.states(shape.levels, shape.lat, shape.lon, contexts, seed + offset)
            )
            np.savez(folder / name, **arrays)
            written.append(folder / name)
    return tuple(written)


def _value(name: str, text: str) -> str | int | tuple[int, ...]:
    known = [f.name for f in fields(PanguShape) if f.name not in ("lat", "lon", "levels")]
    choices = {"bias": ("expanded", "table"), "norms": ("fused", "decomposed")}
    if name not in known:
        raise InputError(f"unknown setting {name!r}", todo=f"Use one of: opset, {', '.join(known)}")
    if name in choices:
        if text not in choices[name]:
            raise InputError(f"{name} cannot be {text!r}", todo=f"Use {' or '.join(choices[name])}")
        return text
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{name} cannot be {text!r}", todo="Write whole numbers, e.g. 2,6,12") from error
    wanted = 1 if name in _NUMBERS else 4 if name == "depths" else 3
    if len(numbers) != wanted:
        raise InputError(
            f"{name} needs {wanted} numbers, not {len(numbers)}", todo="Write them as e.g. 2,6,12"
        )
    return numbers[0] if name in _NUMBERS else numbers
