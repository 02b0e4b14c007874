"""The file `codes.npz`: the integers and scales of data-aware rounding, so that emitting needs no data.

Arrays, weights numbered in order ::

    weights      names, str [n]
    layout       int32 [n, 4]: bits, grid (0 signed, 1 mid-rise), channel axis (-1: one scale), group (0: none)
    <i>.levels   int8, shape of the weight          <i>.scales   float16 or float32
    <i>.rows     uint8 [channels], widths of row tiers; absent for weights of one width

The file is deterministic: the archive holds no timestamps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tqs_onnx.rollout.contexts.archive import DAMAGE, read_named_arrays
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import atomic_file
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.grids.grid import Codes, Grid, broadcast_shape, grids_for, round_levels
from tqs_passes.grids.row_tiers import codes_of_part, parts_of, widths_of, written
from tqs_passes.plan.assigned import fed_weight
from tqs_passes.plan.plan import Plan

CODES_NAME = "codes.npz"
#: What a stated size or error may differ from the real one; a plan's bytes are exact but for padding.
_SLACK, _SLACK_BYTES = 0.005, 4096
_GRIDS = (Grid.SIGNED, Grid.MIDRISE)


def codes_digest(codes: Mapping[str, Codes]) -> str:
    """Return the SHA-256 of integers and scales, by weight."""
    digest = hashlib.sha256()
    for name in sorted(codes):
        c = codes[name]
        digest.update(
            f"{name}\0{c.bits}\0{c.grid}\0{c.axis}\0{c.levels.shape}\0{c.scales.dtype}\0{c.rows}\0{c.group}\0".encode()
        )
        digest.update(np.ascontiguousarray(c.levels).tobytes())
        digest.update(np.ascontiguousarray(c.scales).tobytes())
    return digest.hexdigest()


def codes_beside(plan_file: Path, plan: Plan) -> dict[str, Codes]:
    """Return the codes that a plan needs, from the file beside it; empty if the weights alone determine the integers.

    The file is `codes.npz`, or `<name>.codes.npz` for a plan named `<name>.plan.json`.

    Raises
    ------
    InputError
        The file is missing, damaged, or belongs to another plan.
    """
    if plan.codes_sha256 is None:
        return {}
    path = codes_path(plan_file)
    codes = read_codes(path)
    if codes_digest(codes) != plan.codes_sha256:
        raise InputError("the codes belong to another plan", where=str(path), todo="Run tqs allocate again")
    return codes


def require_stated(plan: Plan, codes: Mapping[str, Codes], model: Model, n_bytes: int, where: Path) -> None:
    """Refuse a plan whose numbers are not those of its codes and its file: nothing else would show it.

    Parameters
    ----------
    plan : Plan
    codes : mapping of str to Codes
    model : Model
        The lifted source.
    n_bytes : int
        Size of the emitted file.
    where : Path
        The plan's file, for the error.

    Raises
    ------
    InputError
        The plan states another size, impossible bytes for a weight, or another rounding error than its codes have.
    """
    todo = "Run tqs allocate again for this model"
    if abs(plan.n_bytes - n_bytes) > max(_SLACK_BYTES, _SLACK * n_bytes):
        raise InputError(
            f"the plan states {plan.n_bytes} bytes, but the file has {n_bytes}", where=str(where), todo=todo
        )
    stored = {t.name: t for t in model.proto.graph.initializer}
    for a in plan.assignments:
        packed = math.prod(a.shape) * a.least_bits // 8
        if not packed <= a.n_bytes <= plan.n_bytes:
            raise InputError(
                f"the plan states {a.n_bytes} bytes for weight {a.label!r}", where=str(where), todo=todo
            )
        found = codes.get(a.weight)
        if found is None or a.weight not in stored:
            continue
        values = tensor_array(stored[a.weight], model.folder)
        error = fed_weight(a, values, found).astype(np.float64) - values.astype(np.float64)
        energy = float(np.sum(error * error))
        if not math.isclose(energy, a.error_energy, rel_tol=_SLACK, abs_tol=1e-30):
            raise InputError(
                f"the codes of weight {a.label!r} have the rounding error {energy:.4g}, not {a.error_energy:.4g}",
                where=str(where),
                todo=todo,
            )


def codes_path(plan_file: Path) -> Path:
    """Return the path of the codes of a plan (see `codes_beside`)."""
    stem = plan_file.name.removesuffix(".plan.json")
    return plan_file.with_name(CODES_NAME if stem == plan_file.name else f"{stem}.{CODES_NAME}")


def write_codes(path: Path, codes: Mapping[str, Codes]) -> None:
    """Write `codes.npz` atomically.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "weights": np.array(list(codes), dtype=np.str_),
        "layout": np.array(
            [
                [c.bits, _GRIDS.index(c.grid), -1 if c.axis is None else c.axis, c.group]
                for c in codes.values()
            ],
            np.int32,
        ).reshape(-1, 4),
    }
    for index, c in enumerate(codes.values()):
        arrays[f"{index}.levels"] = c.levels
        arrays[f"{index}.scales"] = c.scales
        if c.rows:
            arrays[f"{index}.rows"] = widths_of(c.rows)
    with atomic_file(path) as tmp, tmp.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_codes(path: Path) -> dict[str, Codes]:
    """Read `codes.npz`.

    Raises
    ------
    InputError
        The file is missing or damaged, or holds levels outside its grid.
    """
    try:
        arrays = read_named_arrays(path, "Run tqs allocate again")
        names = [str(name) for name in arrays["weights"]]
        layout = arrays["layout"]
        return {
            name: _codes(
                name, arrays[f"{i}.levels"], arrays[f"{i}.scales"], layout[i], arrays.get(f"{i}.rows"), path
            )
            for i, name in enumerate(names)
        }
    except DAMAGE as error:
        raise InputError(
            "is not a codes file, or is damaged", where=str(path), todo="Run tqs allocate again"
        ) from error


def _codes(
    name: str,
    levels: np.ndarray[tuple[int, ...], np.dtype[np.int8]],
    scales: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    layout: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    rows: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None,
    path: Path,
) -> Codes:
    bits, grid, axis, group = int(layout[0]), _GRIDS[int(layout[1])], int(layout[2]), int(layout[3])
    half = scales.dtype == np.float16
    channel = None if axis < 0 else axis
    sound = 1 <= bits <= 8 and levels.dtype == np.int8 and scales.dtype.name in ("float16", "float32")
    wide = scales.astype(np.float32)
    sound = sound and bool((np.isfinite(wide) & (wide > 0)).all())
    stored = scales.astype(np.float16) if half else scales.astype(np.float32)
    if rows is None:
        codes = Codes(levels, stored, bits, grid, channel, group=group)
        sound = sound and (not group or _is_split(levels.shape, channel, group))
        sound = sound and scales.shape == broadcast_shape(levels.shape, channel, group)
        sound = sound and grid in grids_for(bits) and _are_levels(levels, bits, grid)
    else:
        widths = written(rows) if rows.dtype == np.uint8 and ((rows >= 1) & (rows <= 8)).all() else ""
        codes = Codes(levels, stored, bits, grid, channel, widths)
        sound = sound and channel is not None and channel < levels.ndim and bool(widths)
        sound = sound and scales.shape == broadcast_shape(levels.shape, channel)
        sound = sound and len(widths) == levels.shape[axis] and bits == max(rows)
        sound = sound and all(
            _are_levels(codes_of_part(codes, part).levels, part.bits, part.grid)
            for part in parts_of(widths, grid)
        )
    if not sound:
        raise InputError(
            f"the codes of weight {name!r} are not {bits}-bit {grid} levels",
            where=str(path),
            todo="Run tqs allocate again",
        )
    return codes


def _is_split(shape: tuple[int, ...], axis: int | None, group: int) -> bool:
    fits = axis in (0, 1) if len(shape) == 2 else len(shape) > 2 and axis == 1
    return fits and group > 0 and shape[1 - (axis or 0)] % group == 0


def _are_levels(levels: np.ndarray[tuple[int, ...], np.dtype[np.int8]], bits: int, grid: Grid) -> bool:
    return np.array_equal(round_levels(levels.astype(np.float32), bits, grid), levels)
