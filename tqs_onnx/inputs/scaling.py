"""Finds the numbers of `[windows] scaler`: those of a file, of the training rows of the table, or of the graph itself.

The spec that comes back holds plain numbers, so that its digest, its feedback and its contexts agree whatever they were
read from.

    file    .json or .npz of scikit-learn's attributes: mean_, scale_ | data_min_, data_max_ | center_, scale_ |
            min_, scale_; std, var, min and max are read as well
    train   mean and standard deviation (ddof 0) of the training rows; a constant column gets width 1
    graph   constants of Sub and Div, or Mul and Add, behind the input: the graph scales it, and the output is scaled
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.inputs.graph_scaling import constants_behind
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.archive import read_named_arrays
from tqs_onnx.rollout.contexts.features import Features, read_features
from tqs_onnx.rollout.contexts.load import is_table
from tqs_onnx.rollout.contexts.windows import rows_of, special_of, split_rows
from tqs_onnx.rollout.spec.spec import RolloutSpec, load_spec
from tqs_onnx.rollout.spec.windows_table import Scaler, Windows
from tqs_passes.errors import InputError
from tqs_passes.files.text import read_text

_WHERE = "rollout.toml windows.scaler"
_PICKLES = (".pkl", ".pickle", ".joblib", ".sav")
Given = Literal["train", "graph"] | Scaler | None


def with_numbers(spec: RolloutSpec, source: Source, folder: Path, table: Path | None) -> RolloutSpec:
    """Return the spec with the numbers of its scalers.

    Parameters
    ----------
    spec : RolloutSpec
    source : Source
        The model, for a scaler that is part of its graph.
    folder : Path
        Folder that file names in the spec are relative to.
    table : Path or None
        The file that contexts come from, if it is a table.

    Raises
    ------
    InputError
        The numbers cannot be found, or are not one for each column.
    """
    windows = spec.windows
    if windows is None or (windows.scaler is None and windows.target_scaler is None):
        return spec
    table = table if table is not None and is_table(table) else None
    if windows.columns is None and table is not None and (len(_lists(windows.scaler)) != 1):
        inputs, _ = _read(windows, table)
        windows = windows.model_copy(update={"columns": inputs.names})
    changed: dict[str, Any] = {"columns": windows.columns}
    changed["scaler"] = _numbers(windows.scaler, windows, source, folder, table, targets=False)
    changed["target_scaler"] = _numbers(windows.target_scaler, windows, source, folder, table, targets=True)
    if windows.scaler == "graph":
        changed["scaled"] = "output"
    return spec.model_copy(update={"windows": windows.model_copy(update=changed)})


def scaler_files(rollout: object) -> dict[str, Path]:
    """Return the files of scalers that a rollout.toml names, by role; none if it is a value or cannot be read."""
    if not isinstance(rollout, str | Path):
        return {}
    try:
        windows = load_spec(Path(rollout)).windows
    except InputError:  # whoever reads the spec says what is wrong with it
        return {}
    scalers = {} if windows is None else {"scaler": windows.scaler, "target_scaler": windows.target_scaler}
    names = {role: s.file for role, s in scalers.items() if isinstance(s, Scaler)}
    return {role: Path(rollout).parent / name for role, name in names.items() if name is not None}


def _lists(scaler: Given) -> tuple[float, ...]:
    return scaler.affine()[0] if isinstance(scaler, Scaler) and scaler.file is None else ()


def _numbers(
    given: Given, windows: Windows, source: Source, folder: Path, table: Path | None, *, targets: bool
) -> Scaler | None:
    names = windows.targets if targets else windows.columns
    if given is None:
        return None
    if given == "graph":
        offsets, widths = constants_behind(
            source.lifted, windows.input, None if names is None else len(names)
        )
        return Scaler(mean=tuple(offsets), std=tuple(widths))
    if given == "train":
        return _fitted(windows, table, targets=targets)
    found = given if given.file is None else _of_file(folder / given.file, names)
    n = len(found.affine()[0])
    if names is not None and n not in (1, len(names)):
        raise InputError(
            f"has {n} numbers, but windows.{'targets' if targets else 'columns'} names {len(names)} columns",
            where=f"rollout.toml windows.{'target_' if targets else ''}scaler",
            todo="Give one for each column, in the same order, or one for all",
        )
    return found


def _read(windows: Windows, table: Path) -> tuple[Features, Features]:
    _, inputs, outputs = read_features(
        table, windows.columns, windows.targets or (), windows.known, windows.missing
    )
    return inputs, outputs


def _fitted(windows: Windows, table: Path | None, *, targets: bool) -> Scaler:
    if table is None:
        raise InputError(
            'scaler = "train" needs a table as contexts', where=_WHERE, todo="Give mean and std instead"
        )
    rows = rows_of("train", windows, special_of(windows, table))
    features = _read(windows, table)[1 if targets else 0]
    start, stop = split_rows("train", rows, len(features.values), table)
    values = features.values[max(start, features.lag) : stop]
    widths = values.std(axis=0)
    return _scaler(values.mean(axis=0), np.where(widths > 0, widths, 1.0))


def _scaler(offsets: NDArray[np.float64], widths: NDArray[np.float64]) -> Scaler:
    return Scaler(mean=tuple(offsets.tolist()), std=tuple(widths.tolist()))


def _of_file(path: Path, names: Sequence[str] | None) -> Scaler:
    """Read the numbers of a file; if it names its features, take those of the columns."""
    held = _content(path)
    named = held.pop("feature_names_in_", held.pop("feature_names", None))
    numbers = {key: _vector(key, value, path) for key, value in held.items() if value is not None}
    offsets, widths = _affine(numbers, path)
    if named is not None:
        order = [str(n) for n in np.ravel(np.asarray(named, object))]
        _require_equally_many({"feature_names_in_": len(order), "the scaler": len(offsets)}, path)
        missing = [n for n in names or () if n not in order]
        if missing:
            raise InputError(
                f"has no numbers for column {missing[0]!r}",
                where=str(path),
                todo=f"It names: {', '.join(order)}",
            )
        if names is not None:
            chosen = [order.index(n) for n in names]
            offsets, widths = offsets[chosen], widths[chosen]
    return _scaler(offsets, widths)


def _content(path: Path) -> dict[str, Any]:
    if path.suffix in _PICKLES:
        raise InputError(
            "is a pickle, which could run any program: it is not read",
            where=str(path),
            todo="Write numpy.savez(file, mean_=scaler.mean_, scale_=scaler.scale_), and give that .npz",
        )
    if path.suffix == ".npz":
        return dict(read_named_arrays(path))
    try:
        found = json.load(io.StringIO(read_text(path)))
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), todo="Give a .json or .npz of numbers"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError("is not JSON", where=str(path), todo="Give a .json or .npz of numbers") from error
    if not isinstance(found, Mapping):
        raise InputError("holds no names", where=str(path), todo='Write {"mean_": […], "scale_": […]}')
    return dict(found)


def _vector(key: str, value: object, path: Path) -> NDArray[np.float64]:
    try:
        array = np.atleast_1d(np.asarray(value, np.float64)).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        if key.rstrip("_") in _KEYS:
            raise InputError(f"{key} is not numbers", where=str(path), todo="Give plain numbers") from error
        return np.empty(0)
    if key.rstrip("_") in _KEYS and not np.isfinite(array).all():
        raise InputError(f"{key} is not finite", where=str(path), todo="Give finite numbers")
    return array


_KEYS = frozenset(
    {"mean", "scale", "std", "var", "center", "min", "max", "data_min", "data_max", "feature_range"}
)
#: The names that a scaler may have, in the order in which they are looked for.
_PAIRS = (
    ("min", "scale"),
    ("data_min", "data_max"),
    ("min", "max"),
    *((middle, width) for middle in ("mean", "center") for width in ("scale", "std", "var")),
)


def _affine(
    numbers: Mapping[str, NDArray[np.float64]], path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (offset, width) of scaled = (value − offset) / width from the names that scikit-learn uses.

    A column that does not vary gets width 1, as in scikit-learn.
    """
    held = {key.rstrip("_"): value for key, value in numbers.items() if value.size}
    pair = next((pair for pair in _PAIRS if held.keys() >= set(pair)), None)
    if pair is None:
        raise InputError(
            f"holds no scaler, only: {', '.join(sorted(numbers)) or 'nothing'}",
            where=str(path),
            todo="It needs mean_ and scale_ (a deviation), or data_min_ and data_max_",
        )
    first, second = held[pair[0]], held[pair[1]]
    _require_equally_many({pair[0]: len(first), pair[1]: len(second)}, path)
    low, high = _feature_range(numbers, path) if pair == ("data_min", "data_max") else (0.0, 1.0)
    with np.errstate(all="ignore"):  # whatever is not finite is refused below
        if pair == ("min", "scale"):  # MinMaxScaler: value · scale_ + min_
            offsets, widths = -first / second, 1 / second
        elif pair[1] in ("data_max", "max"):
            widths = _varying(second - first) / (high - low)
            offsets = first - low * widths
        else:
            offsets, widths = first, _varying(np.sqrt(second) if pair[1] == "var" else second)
    wrong = np.flatnonzero(~(np.isfinite(offsets) & np.isfinite(widths) & (widths > 0)))
    if len(wrong):
        index = int(wrong[0])
        raise InputError(
            f"{pair[0]} {first[index]:g} and {pair[1]} {second[index]:g} of column {index} scale nothing",
            where=str(path),
            todo="Every width must be finite and above 0",
        )
    return offsets, widths


def _varying(widths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(widths == 0, 1.0, widths)


def _feature_range(numbers: Mapping[str, NDArray[np.float64]], path: Path) -> tuple[float, float]:
    key = next((k for k in numbers if k.rstrip("_") == "feature_range"), None)
    if key is None:
        return 0.0, 1.0
    found = [float(v) for v in numbers[key]]
    if len(found) != 2 or not found[0] < found[1]:
        raise InputError(
            f"{key} is not two rising numbers", where=str(path), todo="Give those of the MinMaxScaler: [0, 1]"
        )
    return found[0], found[1]


def _require_equally_many(lengths: Mapping[str, int], path: Path) -> None:
    if len(set(lengths.values())) > 1:
        texts = [f"{n} in {name}" for name, n in lengths.items()]
        raise InputError(
            f"holds {' and '.join(texts)}", where=str(path), todo="Give one number for each column"
        )
