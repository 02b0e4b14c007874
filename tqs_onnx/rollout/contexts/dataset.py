# pyright: basic, reportMissingImports=false
"""Open NetCDF files and Zarr stores: the only module that imports xarray, and only when such a file is given.

It returns NumPy arrays: the arrays of a contexts file, or fields over time, ordered from north to south.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_passes.errors import InputError

SUFFIXES = (".nc", ".nc4", ".zarr")
_TIME = ("valid_time", "time")
_LEVEL = ("pressure_level", "level", "isobaricInhPa", "plev")
_ROWS = ("latitude", "lat")
_COLUMNS = ("longitude", "lon")


def is_dataset(path: Path) -> bool:
    """Return whether a path is a NetCDF file or a Zarr store, judging by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_named(path: Path) -> dict[str, NDArray[Any]]:
    """Return every variable of a dataset by name; `truth.<output>` becomes `truth/<output>`."""
    with closing(_opened(path)) as dataset:
        names = [str(name) for name in dataset.data_vars]
        return {_unescaped(name): np.asarray(dataset[name].values) for name in names}


def _unescaped(name: str) -> str:
    return f"truth/{name.removeprefix('truth.')}" if name.startswith("truth.") else name


def _opened(path: Path) -> Any:  # noqa: ANN401  (xarray is optional: its types are unknown here)
    try:
        import xarray
    except ImportError as error:
        raise InputError(
            f"reading this file needs {error.name}", where=str(path), todo="pip install 'tqs-onnx[data]'"
        ) from error
    engine = "zarr" if path.is_dir() else "h5netcdf"
    try:
        return xarray.open_dataset(path, engine=engine, chunks=None)
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot be read as {'Zarr' if path.is_dir() else 'NetCDF 4'} ({said})",
            where=str(path),
            todo="Check the file, and that 'tqs-onnx[data]' is installed",
        ) from error


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields over time in one dataset; call `close` when done.

    Parameters
    ----------
    path : Path
    seconds : NDArray[np.int64]
        Time of every row in seconds since 1970, UTC.
    names : tuple of str
    """

    path: Path
    seconds: NDArray[np.int64]
    names: tuple[str, ...]
    _dataset: Any

    def close(self) -> None:
        """Close the file."""
        self._dataset.close()

    def unit(self, name: str) -> str | None:
        """Return the `units` attribute of a variable."""
        given = self._dataset[name].attrs.get("units")
        return None if given is None else str(given)

    def read(
        self, name: str, rows: Sequence[int] | None, levels: Sequence[int] | None
    ) -> NDArray[np.float64]:
        """Return a variable as [row, latitude, longitude], with `levels` as [row, level, latitude, longitude].

        Parameters
        ----------
        name : str
        rows : sequence of int or None
            Rows of time. None: the result has no row axis; a variable with time gives its first row.
        levels : sequence of int or None
            Pressure levels in hPa, in the requested order.

        Raises
        ------
        InputError
            The variable lacks an axis, has an additional axis, or lacks a level.
        """
        array = self._dataset[name]
        time = next((d for d in array.dims if d in _TIME), None)
        if time is not None:
            array = array.isel({time: 0 if rows is None else list(rows)})
        elif rows is not None:
            raise self._wrong(f"{name!r} has no time axis", "Set static = true for it")
        level = next((d for d in array.dims if d in _LEVEL), None)
        if (level is None) != (levels is None):
            raise self._wrong(
                f"{name!r} has {'no' if level is None else 'an axis of'} levels",
                "Remove levels from [[fields.input]]" if level is None else "Set levels in [[fields.input]]",
            )
        if level is not None and levels is not None:
            held = [round(float(v)) for v in array[level].values]
            missing = [v for v in levels if v not in held]
            if missing:
                raise self._wrong(f"{name!r} has no level {missing[0]} hPa", f"Its levels are: {held}")
            array = array.isel({level: [held.index(v) for v in levels]})
        row = next((d for d in array.dims if d in _ROWS), None)
        column = next((d for d in array.dims if d in _COLUMNS), None)
        order = [d for d in (None if rows is None else time, level, row, column) if d is not None]
        if row is None or column is None or len(order) != array.ndim:
            raise self._wrong(
                f"{name!r} has axes {list(array.dims)}", "Keep time, level, latitude, longitude"
            )
        values = np.asarray(array.transpose(*order).values, np.float64)
        south_first = array[row].size > 1 and float(array[row][0]) < float(array[row][-1])
        return np.ascontiguousarray(values[..., ::-1, :]) if south_first else values

    @property
    def latitudes(self) -> tuple[float, ...] | None:
        """Latitudes in degrees, from north to south; None without such an axis."""
        name = next((n for n in _ROWS if n in self._dataset.coords), None)
        if name is None:
            return None
        values = np.asarray(self._dataset[name].values, np.float64).reshape(-1)
        return tuple(sorted((float(v) for v in values), reverse=True))

    def digest(self) -> str:
        """Return a digest of times, names and coordinates, which identifies what the rows refer to."""
        sha = hashlib.sha256(self.seconds.tobytes())
        for name in sorted(str(c) for c in self._dataset.coords):
            if name in (*_LEVEL, *_ROWS, *_COLUMNS):
                sha.update(name.encode() + np.asarray(self._dataset[name].values, np.float64).tobytes())
        sha.update("\0".join(sorted(self.names)).encode())
        return sha.hexdigest()

    def _wrong(self, what: str, todo: str) -> InputError:
        return InputError(what, where=str(self.path), todo=todo)


def open_fields(path: Path) -> Fields:
    """Open a dataset of fields over time.

    Raises
    ------
    InputError
        xarray is missing, the file cannot be read, or it has no time axis.
    """
    dataset = _opened(path)
    time = next((n for n in _TIME if n in dataset.coords), None)
    if time is None or not np.issubdtype(dataset[time].dtype, np.datetime64):
        dataset.close()
        raise InputError("has no time axis", where=str(path), todo=f"Name the axis {' or '.join(_TIME)}")
    seconds = dataset[time].values.astype("datetime64[s]").astype(np.int64)
    return Fields(path, np.atleast_1d(seconds), tuple(str(n) for n in dataset.data_vars), dataset)
