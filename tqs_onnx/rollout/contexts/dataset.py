# pyright: basic, reportMissingImports=false
"""Open NetCDF files and Zarr stores: the only module that imports xarray, and only when such a file is given.

It returns NumPy arrays: the arrays of a contexts file, or fields over time, ordered from north to south. Times may be
one axis (`valid_time` or `time`), one start with lead times (a scalar `time`, an axis `step`), or starts with lead
times that follow each other (`time`, `step`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.contexts.calendars import lead_seconds, seconds_since, unit_seconds
from tqs_onnx.rollout.contexts.foreign_data import require_own_data
from tqs_onnx.rollout.contexts.hdf5_trial import require_readable
from tqs_passes.errors import InputError, one_line

SUFFIXES = (".nc", ".nc3", ".nc4", ".cdf", ".zarr")
_TIME = ("valid_time", "time")
_STEP = ("step", "lead_time", "leadtime", "prediction_timedelta", "forecast_period")
_LEVEL = ("pressure_level", "level", "isobaricInhPa", "plev")
_ROWS = ("latitude", "lat")
_COLUMNS = ("longitude", "lon")
#: Name of the axis of the rows that are read.
_ROW = "tqs_row"
#: A grid that spans more degrees than this goes round the Earth.
_GLOBAL = 350.0
#: First bytes of NetCDF 3: classic and with 64-bit offsets. Version 5 is CDF-5, which SciPy does not read.
_NETCDF3 = (b"CDF\x01", b"CDF\x02")
_NETCDF5 = b"CDF\x05"
#: What xarray, h5py and SciPy raise over a damaged file.
_DAMAGED = (OSError, ValueError, KeyError, RuntimeError, IndexError, TypeError, AttributeError, OverflowError)


def is_dataset(path: Path) -> bool:
    """Return whether a path is a NetCDF file or a Zarr store, judging by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_named(path: Path) -> dict[str, NDArray[Any]]:
    """Return every variable of a dataset by name; `truth.<output>` becomes `truth/<output>`."""
    with closing(_opened(path)) as dataset, _explained(path):
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
    with _explained(path):
        engine = _engine(path)
        if engine == "h5netcdf":
            require_readable(path)
        if engine != "scipy":
            require_own_data(path)
        return xarray.open_dataset(
            path, engine=engine, chunks=None, decode_times=False, decode_timedelta=False
        )


def _engine(path: Path) -> str:
    if path.is_dir():
        return "zarr"
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic == _NETCDF5:
        raise InputError(
            "is a NetCDF file of the format CDF-5, which is not read",
            where=str(path),
            todo="Convert it: nccopy -k nc4 in.nc out.nc",
        )
    return "scipy" if magic in _NETCDF3 else "h5netcdf"


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Turn what the libraries raise over a damaged file into one line."""
    try:
        yield
    except InputError:
        raise
    except (*_DAMAGED, ImportError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot be read as {'Zarr' if path.is_dir() else 'NetCDF'} ({one_line(said, 200)})",
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
        Time of every row in seconds since 1970, UTC, counted in the calendar.
    names : tuple of str
    calendar : str
    time_axes : tuple of str
        The axes that rows run along, the last fastest.
    notes : tuple of str
        Notes for the user about the grid.
    """

    path: Path
    seconds: NDArray[np.int64]
    names: tuple[str, ...]
    calendar: str
    time_axes: tuple[str, ...]
    notes: tuple[str, ...]
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
        with _explained(self.path):
            return self._read(name, rows, levels)

    def _read(
        self, name: str, rows: Sequence[int] | None, levels: Sequence[int] | None
    ) -> NDArray[np.float64]:
        array = self._dataset[name]
        times = [d for d in array.dims if d in self.time_axes]
        if times and rows is None:
            array = array.isel(dict.fromkeys(times, 0))
        elif rows is not None:
            if len(times) < len(self.time_axes):
                raise self._wrong(f"{name!r} has no time axis", "Set static = true for it")
            sizes = [self._dataset.sizes[d] for d in self.time_axes]
            places = np.unravel_index(np.asarray(rows, np.int64), sizes)
            array = array.isel({d: (_ROW, p) for d, p in zip(self.time_axes, places, strict=True)})
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
        order = [d for d in (None if rows is None else _ROW, level, row, column) if d is not None]
        # One member, one surface, one version of ERA5: an axis of one says nothing.
        array = array.isel({d: 0 for d in array.dims if d not in order and array.sizes[d] == 1})
        if row is None or column is None or len(order) != array.ndim:
            raise self._wrong(
                f"{name!r} has axes {list(array.dims)}", "Keep time, level, latitude, longitude"
            )
        values = np.asarray(array.transpose(*order).values, np.float64)
        return np.ascontiguousarray(values[..., ::-1, :]) if self._is_south_first(row) else values

    def _is_south_first(self, row: str) -> bool:
        if row not in self._dataset.coords or self._dataset.sizes[row] < 2:
            return False
        latitudes = self._dataset[row].values
        return float(latitudes[0]) < float(latitudes[-1])

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
        xarray is missing, the file cannot be read, or it has no times that can be read.
    """
    dataset = _opened(path)
    try:
        with _explained(path):
            axes, seconds, calendar = _times(dataset, path)
            names = tuple(str(n) for n in dataset.data_vars if str(n) not in (*_TIME, *_STEP))
            return Fields(path, seconds, names, calendar, axes, _grid_notes(dataset, path), dataset)
    except BaseException:
        dataset.close()
        raise


def _times(dataset: Any, path: Path) -> tuple[tuple[str, ...], NDArray[np.int64], str]:  # noqa: ANN401
    """Return the axes of time, the time of every row, and the calendar."""
    time = next((n for n in _TIME if n in dataset.variables and n in dataset.coords), None)
    time = time or next((n for n in _TIME if n in dataset.variables), None)
    if time is None:
        raise InputError("has no time axis", where=str(path), todo=f"Name the axis {' or '.join(_TIME)}")
    variable = dataset[time]
    calendar = str(variable.attrs.get("calendar", variable.encoding.get("calendar", "standard"))).lower()
    units = str(variable.attrs.get("units", variable.encoding.get("units", "")))
    try:
        moments = seconds_since(np.asarray(variable.values), units, calendar)
    except ValueError as error:
        raise InputError(
            str(error), where=str(path), todo="Write the times again, e.g. with xarray's to_netcdf"
        ) from error
    axes = tuple(str(d) for d in variable.dims)
    step = next((n for n in _STEP if n in dataset.dims and n not in axes), None)
    if step is not None and time == "time" and (dataset.sizes[step] > 1 or step in dataset.coords):
        leads = dataset[step]
        factor = unit_seconds(str(leads.attrs.get("units", "")))
        if factor is None:
            raise InputError(
                f"the axis {step!r} has no unit of time", where=str(path), todo="Set its units, e.g. to hours"
            )
        moments = moments[..., None] + lead_seconds(np.asarray(leads.values), factor)
        axes = (*axes, step)
    kept = tuple(a for a in axes if dataset.sizes[a] > 1) or axes[:1]
    if not kept:
        raise InputError(
            f"holds one time only, {time!r} without an axis", where=str(path), todo="Give several times"
        )
    flat = moments.reshape(-1)
    if len(kept) > 1 and (np.diff(flat) <= 0).any():
        sizes = " × ".join(f"{dataset.sizes[a]} {a}" for a in kept)
        raise InputError(
            f"holds forecasts of {sizes} whose times overlap: no row is the one state of its time",
            where=str(path),
            todo=f"Keep one of them, e.g. with xarray's isel({kept[-1]}=0)",
        )
    return kept, flat, calendar


def _grid_notes(dataset: Any, path: Path) -> tuple[str, ...]:  # noqa: ANN401
    notes: list[str] = []
    row = next((d for d in dataset.dims if d in _ROWS), None)
    column = next((d for d in dataset.dims if d in _COLUMNS), None)
    if row is not None and row not in dataset.coords:
        notes.append(f"{path} gives no latitudes: its rows are taken to run from north to south, as stored")
    if column is not None and column in dataset.coords:
        degrees = np.asarray(dataset[column].values, np.float64)
        if degrees.size > 1 and np.ptp(degrees) >= _GLOBAL and degrees[0] < 0:
            notes.append(
                f"{path} has longitudes from {degrees[0]:g} to {degrees[-1]:g}, taken as stored: most models of ERA5 "
                "begin at 0 (xarray's roll turns them)"
            )
    return tuple(notes)
