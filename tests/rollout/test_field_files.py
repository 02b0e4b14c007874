"""Fields as files hold them: NetCDF 3, lead times, other calendars, bare grids, units; and hostile files."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqs_onnx.rollout.contexts.calendars import date_seconds, seconds_since, text_of
from tqs_onnx.rollout.contexts.dataset import open_fields, read_named
from tqs_onnx.rollout.contexts.era5 import converted
from tqs_onnx.rollout.contexts.foreign_data import require_own_data
from tqs_onnx.rollout.contexts.load import Contexts, load_contexts
from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_passes.errors import InputError

xarray = pytest.importorskip("xarray", reason="needs xarray, of the [data] extra")
h5py = pytest.importorskip("h5py", reason="needs h5py, of the [data] extra")
pytest.importorskip("h5netcdf", reason="needs h5netcdf, of the [data] extra")

SPEC = """version = 1
rollout = { steps = 2, batch_axis = 0 }
feedback = [{ output = "y", input = "x", mode = "replace" }]
trajectory = { outputs = ["y"] }
[fields]
step_hours = 6
every_hours = 6
validation = ["2020-02-27", "2020-02-28"]
test = ["2020-02-28", "2020-03-02"]
input = [{ input = "x", variables = ["2t"] }]
"""
HOURS = np.arange(0, 24 * 5, 6)
LAT, LON = [20.0, 10.0], [0.0, 1.0, 2.0]
VALUES = 280 + np.random.default_rng(0).normal(size=(len(HOURS), 2, 3))


def loaded(path: Path, text: str = SPEC) -> Contexts:
    shape = ("n", 1, 2, 3)
    ports = [(Port(name, np.dtype(np.float32), shape),) for name in "xy"]
    return load_contexts(path, parse_spec(text), ModelSignature(*ports), split="test")


def grid(
    axes: tuple[str, ...] = ("time",),
    values: np.ndarray = VALUES,
    *,
    latitudes: bool = True,
    **coordinates: Any,
) -> Any:
    coords = {"longitude": LON, **coordinates} | ({"latitude": LAT} if latitudes else {})
    held = {"t2m": ((*axes, "latitude", "longitude"), values, {"units": "K"})}
    return xarray.Dataset(held, coords)


def hourly(calendar: str = "standard") -> tuple[str, np.ndarray, dict[str, str]]:
    return ("time", HOURS, {"units": "hours since 2020-02-27 00:00:00", "calendar": calendar})


def saved(path: Path, made: Any, engine: str = "h5netcdf", **options: Any) -> Path:
    made.to_netcdf(path, engine=engine, **options)
    return path


def check(made: Contexts, first: int = 4) -> None:
    """Compare with the values, whose row `first` is the first of the test days."""
    np.testing.assert_array_equal(made.arrays["x"][0, 0], VALUES[first].astype(np.float32))
    np.testing.assert_array_equal(made.truth["y"][0, :, 0], VALUES[[first + 1, first + 2]])


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF3_64BIT"])
def test_netcdf_3_is_read(tmp_path: Path, kind: str) -> None:
    check(loaded(saved(tmp_path / "a.nc", grid(time=hourly()), "scipy", format=kind)))


def test_netcdf_5_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(b"CDF\x05" + bytes(100))
    with pytest.raises(InputError, match=r"format CDF-5, which is not read. Convert it: nccopy -k nc4"):
        loaded(tmp_path / "a.nc")


def test_starts_with_lead_times_that_follow_each_other_are_one_axis(tmp_path: Path) -> None:
    """ERA5's short forecasts: `valid_time(time, step)`."""
    starts, leads = HOURS[::2], np.array([0, 6])
    made = grid(
        ("time", "step"),
        VALUES.reshape(-1, 2, 2, 3),
        time=("time", starts, {"units": "hours since 2020-02-27"}),
        step=("step", leads, {"units": "hours"}),
        valid_time=(("time", "step"), starts[:, None] + leads, {"units": "hours since 2020-02-27"}),
    )
    check(loaded(saved(tmp_path / "a.nc", made)))


def test_one_start_with_lead_times_is_read_along_the_lead_time(tmp_path: Path) -> None:
    made = grid(
        ("step",),
        time=((), 0, {"units": "hours since 2020-02-27"}),
        step=("step", HOURS, {"units": "hours"}),
    )
    check(loaded(saved(tmp_path / "a.nc", made)))


def test_forecasts_that_overlap_are_refused(tmp_path: Path) -> None:
    leads = np.array([0, 6, 12])
    made = grid(
        ("time", "step"),
        np.zeros((4, 3, 2, 3)),
        time=("time", HOURS[:4], {"units": "hours since 2020-02-27"}),
        step=("step", leads, {"units": "hours"}),
    )
    with pytest.raises(InputError, match=r"forecasts of 4 time × 3 step whose times overlap.*isel\(step=0\)"):
        loaded(saved(tmp_path / "a.nc", made))


@pytest.mark.parametrize(
    ("calendar", "day"),
    [("standard", "2020-02-29T18"), ("noleap", "2020-03-01T18"), ("360_day", "2020-02-29T18")],
)
def test_the_days_of_a_calendar_are_counted_as_it_does(tmp_path: Path, calendar: str, day: str) -> None:
    """noleap has no 29 February, 360_day even a 30th."""
    check(loaded(saved(tmp_path / "a.nc", grid(time=hourly(calendar)))))
    fields = open_fields(tmp_path / "a.nc")
    assert text_of(int(fields.seconds[11]), calendar) == day
    fields.close()


def test_seconds_since_agree_with_the_standard_library() -> None:
    moment = datetime.datetime(1987, 5, 17, 13, 30, tzinfo=datetime.UTC)
    hours = (moment - datetime.datetime(1900, 1, 1, tzinfo=datetime.UTC)).total_seconds() / 3600
    found = seconds_since(np.array([hours]), "hours since 1900-01-01 00:00:0.0", "gregorian")
    assert found.tolist() == [int(moment.timestamp())]


def test_the_calendar_before_1582_is_the_julian() -> None:
    # 1 January of the year 1 in the Julian calendar is 719,164 days before 1970; in the Gregorian two fewer.
    assert date_seconds(1, 1, 1, "standard") == -719164 * 86400
    assert date_seconds(1, 1, 1, "proleptic_gregorian") == -719162 * 86400


def test_a_calendar_that_is_not_known_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the calendar 'mayan' is not read"):
        loaded(saved(tmp_path / "a.nc", grid(time=hourly("mayan"))))


def test_rows_without_latitudes_keep_their_order_and_are_remarked(tmp_path: Path) -> None:
    made = loaded(saved(tmp_path / "a.nc", grid(latitudes=False, time=hourly())))
    check(made)
    assert any("gives no latitudes: its rows are taken to run from north to south" in n for n in made.notes)


def test_an_axis_of_one_is_dropped_whatever_its_name(tmp_path: Path) -> None:
    made = grid(("time", "number", "expver"), VALUES[:, None, None], time=hourly(), number=[0], expver=[1])
    check(loaded(saved(tmp_path / "a.nc", made)))


def test_longitudes_that_begin_west_of_0_are_remarked(tmp_path: Path) -> None:
    made = grid(time=hourly()).assign_coords(longitude=[-180.0, -60.0, 179.0])
    held = loaded(saved(tmp_path / "a.nc", made))
    check(held)
    assert any("has longitudes from -180 to 179, taken as stored" in n for n in held.notes)


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [
        ("degrees_celsius", "K", 1.5, 274.65),
        ("degree_Celsius", "K", 1.5, 274.65),
        ("Kelvin", "°C", 273.15, 0.0),
        ("m.s-1", "m/s", 3.0, 3.0),
        ("m s^{-1}", "m/s", 3.0, 3.0),
        ("1", "g/kg", 0.005, 5.0),
        ("kg.kg-1", "g/kg", 0.005, 5.0),
        ("J kg**-1", "m**2 s**-2", 9.0, 9.0),
        ("millibar", "Pa", 2.0, 200.0),
        ("gpm", "m2/s2", 2.0, 19.6133),
    ],
)
def test_a_unit_may_be_spelt_in_many_ways(given: str, wanted: str, value: float, expected: float) -> None:
    np.testing.assert_allclose(
        converted(np.array([value]), given, wanted), [expected], rtol=1e-12, atol=1e-12
    )


def test_the_spec_may_correct_the_unit_of_a_file(tmp_path: Path) -> None:
    made = grid(time=hourly())
    made["t2m"].attrs["units"] = "unknown"
    path = saved(tmp_path / "a.nc", made)
    with pytest.raises(InputError, match=r"unknown unit 'unknown'\. Name the unit of the file in file_units"):
        loaded(path)
    text = SPEC.replace('["2t"]', '["2t"], units = ["°C"], file_units = ["K"]')
    held = loaded(path, text)
    np.testing.assert_allclose(
        held.arrays["x"][0, 0], VALUES[4] - 273.15, rtol=1e-5
    )  # float32 of 280 − 273.15


def test_a_file_without_units_is_remarked(tmp_path: Path) -> None:
    made = grid(time=hourly())
    del made["t2m"].attrs["units"]
    held = loaded(saved(tmp_path / "a.nc", made))
    assert any("t2m has no units and is taken to be in K" in n for n in held.notes)


# Hostile and damaged files


def test_external_storage_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(48)))
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file.create_dataset("x", (12,), "f4", external=[(str(tmp_path / "secret"), 0, 48)])
    with pytest.raises(
        InputError, match=r"'/x' is stored in the file .*secret.*from other files are not read"
    ):
        read_named(tmp_path / "a.nc")


def test_external_links_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file.create_group("inner")["x"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
    with pytest.raises(InputError, match=r"'/inner/x' links to the file '.*other\.h5'"):
        read_named(tmp_path / "a.nc")


def test_virtual_datasets_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(3)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3,))
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file.create_virtual_dataset("x", layout)
    with pytest.raises(InputError, match="'/x' is put together from other datasets"):
        read_named(tmp_path / "a.nc")


def test_a_link_out_of_a_zarr_store_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(8))
    (tmp_path / "a.zarr" / "x").mkdir(parents=True)
    (tmp_path / "a.zarr" / "x" / "0").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="'x/0' links to outside of the store"):
        read_named(tmp_path / "a.zarr")


def test_a_group_that_holds_its_parent_is_walked_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.nc", "w") as file:
        file["x"] = np.ones(3)
        inner = file.create_group("inner")
        inner["again"] = inner
    require_own_data(tmp_path / "a.nc")


def test_a_damaged_file_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    raw = bytearray(saved(tmp_path / "a.nc", grid(time=hourly())).read_bytes())
    (tmp_path / "cut.nc").write_bytes(raw[: len(raw) // 2])
    raw[600:1000] = b"\xff" * 400
    (tmp_path / "turned.nc").write_bytes(raw)
    script = f"""
from pathlib import Path
from tqs_onnx.rollout.contexts.dataset import open_fields
from tqs_passes.errors import InputError
for name in ("cut", "turned"):
    try:
        open_fields(Path({str(tmp_path)!r}) / f"{{name}}.nc")
    except InputError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("cannot be read as NetCDF") == done.stdout.count("\n") == 2
    assert done.stderr == ""
