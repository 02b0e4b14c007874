"""Contexts from NetCDF files and Zarr stores: names, units, levels, orientation, history, splits, truth."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tqs_onnx.rollout.contexts.dataset import open_fields
from tqs_onnx.rollout.contexts.era5 import FIELDS, converted, find_name, in_paper_units, si_unit
from tqs_onnx.rollout.contexts.load import Contexts, check_disjoint, load_contexts
from tqs_onnx.rollout.spec.signature import ModelSignature, Port
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_passes.errors import InputError

SPEC = """
version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = "surf_next"
input = "surf"
mode = "shift"
axis = 1
expand = 1
[[feedback]]
output = "upper_next"
input = "upper"
mode = "replace"
[[static]]
input = "fixed"
[trajectory]
outputs = ["surf_next", "upper_next"]
[fields]
step_hours = 6
every_hours = 12
validation = ["2020-01-01", "2020-01-05"]
test = ["2020-01-05", "2020-01-09"]
[[fields.input]]
input = "surf"
variables = ["2t", "msl"]
history = 2
[[fields.input]]
input = "upper"
variables = ["q", "z"]
levels = [850, 500]
[[fields.input]]
input = "fixed"
variables = ["lsm"]
static = true
"""
LAT, LON = np.array([30.0, 20.0, 10.0]), np.array([0.0, 90.0, 180.0, 270.0])
HOURS = np.arange(0, 24 * 8, 3)
ROWS = len(HOURS)


def spec(text: str = SPEC) -> RolloutSpec:
    return parse_spec(text)


def signature() -> ModelSignature:
    f = np.dtype(np.float32)
    return ModelSignature(
        inputs=(
            Port("surf", f, ("n", 2, 2, 3, 4)),
            Port("upper", f, ("n", 2, 2, 3, 4)),
            Port("fixed", f, ("n", 1, 3, 4)),
        ),
        outputs=(Port("surf_next", f, ("n", 2, 3, 4)), Port("upper_next", f, ("n", 2, 2, 3, 4))),
    )


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "t2m": 280 + rng.normal(size=(ROWS, 3, 4)),
        "msl": 101325 + rng.normal(size=(ROWS, 3, 4)),
        "q": rng.random(size=(ROWS, 3, 3, 4)),
        "z": 5e4 + rng.normal(size=(ROWS, 3, 3, 4)),
        "lsm": rng.random(size=(3, 4)),
    }


def dataset(*, south_first: bool = False, other_units: bool = False) -> Any:
    """Hold `values()` as ERA5 files do, or turned round as WeatherBench does, or in other units."""
    xarray = pytest.importorskip("xarray", reason="needs xarray, of the [data] extra")
    units = {"t2m": "K", "msl": "Pa", "q": "kg kg**-1", "z": "m**2 s**-2", "lsm": "(0 - 1)"}
    held = values()
    if other_units:
        units |= {"t2m": "degC", "msl": "hPa", "q": "g/kg", "z": "m"}
        held |= {"t2m": held["t2m"] - 273.15, "msl": held["msl"] / 100, "q": held["q"] * 1000}
        held |= {"z": held["z"] / 9.80665}
    axes = {2: ("latitude", "longitude"), 3: ("valid_time", "latitude", "longitude")}
    axes[4] = ("valid_time", "pressure_level", "latitude", "longitude")
    times = np.datetime64("2020-01-01", "ns") + (HOURS * 3600 * 10**9).astype("timedelta64[ns]")
    made = xarray.Dataset(
        {n: (axes[a.ndim], a, {"units": units[n]}) for n, a in held.items()},
        {"valid_time": times, "pressure_level": [1000.0, 850.0, 500.0], "latitude": LAT, "longitude": LON},
    )
    return made.isel(latitude=slice(None, None, -1)).transpose(..., "latitude") if south_first else made


def written(folder: Path, made: Any, kind: str = "nc") -> Path:
    path = folder / f"era5.{kind}"
    if kind == "nc":
        pytest.importorskip("h5netcdf", reason="needs h5netcdf, of the [data] extra")
        made.to_netcdf(path, engine="h5netcdf")
    else:
        pytest.importorskip("zarr", reason="needs zarr, of the [data] extra")
        made.to_zarr(path, zarr_format=2, consolidated=True)
    return path


def loaded(path: Path, split: Any = "test", text: str = SPEC, limit: int | None = None) -> Contexts:
    return load_contexts(path, spec(text), signature(), split=split, limit=limit)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_a_context_holds_the_states_of_its_start(tmp_path: Path, kind: str) -> None:
    made, held = loaded(written(tmp_path, dataset(), kind)), values()
    start = 4 * 8 + 2  # the first test row that has 6 h of history
    np.testing.assert_array_equal(made.arrays["surf"][0, 1, 0], held["t2m"][start].astype(np.float32))
    np.testing.assert_array_equal(made.arrays["surf"][0, 0, 1], held["msl"][start - 2].astype(np.float32))
    np.testing.assert_array_equal(made.arrays["upper"][0, 1, 0], held["z"][start, 1].astype(np.float32))
    np.testing.assert_array_equal(made.arrays["fixed"][-1, 0], held["lsm"].astype(np.float32))


def test_starts_follow_each_other_by_every_hours(tmp_path: Path) -> None:
    made = loaded(written(tmp_path, dataset()))
    assert made.rows is not None
    assert np.diff(made.rows[:, 0]).tolist() == [4] * (len(made.rows) - 1)


def test_the_truth_is_what_was_fed_back_later(tmp_path: Path) -> None:
    made, held = loaded(written(tmp_path, dataset())), values()
    start = 4 * 8 + 2
    np.testing.assert_array_equal(made.truth["surf_next"][0, :, 0], held["t2m"][[start + 2, start + 4]])
    np.testing.assert_array_equal(made.truth["upper_next"][0, 1, 0, 1], held["q"][start + 4, 2])


def test_files_in_other_units_give_the_same_contexts(tmp_path: Path) -> None:
    si = loaded(written(tmp_path, dataset()))
    (tmp_path / "other").mkdir()
    other = loaded(written(tmp_path / "other", dataset(other_units=True)))
    for name, array in si.arrays.items():
        np.testing.assert_allclose(other.arrays[name], array, rtol=1e-6)  # float32


def test_rows_run_from_north_to_south_whatever_the_file_does(tmp_path: Path) -> None:
    north = loaded(written(tmp_path, dataset()))
    (tmp_path / "other").mkdir()
    turned = loaded(written(tmp_path / "other", dataset(south_first=True)))
    for name, array in north.arrays.items():
        np.testing.assert_array_equal(turned.arrays[name], array)


def test_the_model_may_want_the_units_of_the_paper(tmp_path: Path) -> None:
    text = SPEC.replace("history = 2", 'history = 2\nunits = ["°C", "hPa"]')
    made, held = loaded(written(tmp_path, dataset()), text=text), values()
    np.testing.assert_allclose(made.arrays["surf"][0, 1, 0], held["t2m"][34] - 273.15, rtol=1e-5)
    np.testing.assert_allclose(made.arrays["surf"][0, 1, 1], held["msl"][34] / 100, rtol=1e-6)


def test_validation_and_test_contexts_are_disjoint(tmp_path: Path) -> None:
    path = written(tmp_path, dataset())
    check_disjoint(loaded(path, "validation", limit=2), loaded(path, "test"))
    with pytest.raises(InputError, match="overlap"):
        check_disjoint(loaded(path, "test"), loaded(path, "test"))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"msl"]', '"sst"]', "contains no variable 'sst'"),
        ("[850, 500]", "[850, 300]", "no level 300 hPa"),
        ("levels = [850, 500]\n", "", "an axis of levels"),
        ("step_hours = 6", "step_hours = 4", "steps of 4 h do not fit"),
        ('"2020-01-09"]', '"2020-01-05"]', "too few"),
        ('"2020-01-09"]', '"next year"]', "are not dates"),
        ("history = 2", "history = 3", "do not fit input"),
        ("history = 2", 'history = 2\nunits = ["K", "K"]', "measures pressure"),
        ("static = true", "static = false", "no time axis"),
        (
            '[[fields.input]]\ninput = "fixed"\nvariables = ["lsm"]\nstatic = true\n',
            "",
            "no values for input 'fixed'",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = written(tmp_path, dataset())
    assert old in SPEC
    with pytest.raises(InputError, match=what) as caught:
        loaded(path, text=SPEC.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_netcdf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf", reason="needs h5netcdf, of the [data] extra")
    pytest.importorskip("xarray", reason="needs xarray, of the [data] extra")
    (tmp_path / "bad.nc").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match=r"cannot be read as NetCDF \(.+\)"):
        loaded(tmp_path / "bad.nc")


def test_without_xarray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.nc").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(InputError, match=r"tqs-onnx\[data\]"):
        loaded(tmp_path / "any.nc")


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_a_dataset_may_hold_an_array_for_each_input(tmp_path: Path, kind: str) -> None:
    xarray = pytest.importorskip("xarray", reason="needs xarray, of the [data] extra")
    rng = np.random.default_rng(0)
    shapes = {
        "surf": (3, 2, 2, 3, 4),
        "upper": (3, 2, 2, 3, 4),
        "fixed": (3, 1, 3, 4),
        "truth.surf_next": (3, 2, 2, 3, 4),
    }
    held = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    made = xarray.Dataset({n: ([f"{n}_{i}" for i in range(a.ndim)], a) for n, a in held.items()})
    text = SPEC.partition("[fields]")[0]
    contexts = loaded(written(tmp_path, made, kind), text=text)
    np.testing.assert_array_equal(contexts.arrays["upper"], held["upper"])
    np.testing.assert_array_equal(contexts.truth["surf_next"], held["truth.surf_next"])


def test_era5_over_the_gulf_can_be_read_as_fields() -> None:
    pytest.importorskip("h5netcdf", reason="needs h5netcdf, of the [data] extra")
    pytest.importorskip("xarray", reason="needs xarray, of the [data] extra")
    shared = Path(__file__).parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("TQS_DATA", shared)) / "gridded" / "era5_gulf" / "era5_2007.nc"
    if not path.is_file():
        pytest.skip("gridded/era5_gulf is not under $TQS_DATA")
    fields = open_fields(path)
    assert fields.read("t2m", [0, 1], None).shape == (2, 7, 12)
    assert set(np.diff(fields.seconds)) == {3 * 3600}
    fields.close()


@pytest.mark.parametrize(
    ("variable", "si", "paper"),
    [
        ("2t", 294.63, 21.48),
        ("msl", 101325.0, 1013.25),
        ("q", 0.005, 5.0),
        ("z", 3726.0, 3726.0),
        ("t", 250.0, 250.0),
    ],
)
def test_the_papers_units(variable: str, si: float, paper: float) -> None:
    np.testing.assert_allclose(in_paper_units(variable, np.array([si])), [paper], rtol=1e-12)


def test_all_nine_variables_are_known_by_their_long_names() -> None:
    longest = {name: max(field.names, key=len) for name, field in FIELDS.items()}
    assert len(FIELDS) == 9
    assert all(
        find_name(name, [long]) == long and si_unit(long) == si_unit(name) for name, long in longest.items()
    )


def test_a_unit_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="unknown unit 'furlong'"):
        converted(np.zeros(1), "furlong", "m")


def test_fields_have_no_training_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[fields\] has no training split"):
        loaded(written(tmp_path, dataset()), split="train")


def test_a_state_in_other_units_has_no_truth(tmp_path: Path) -> None:
    scaled = SPEC.replace(
        'input = "upper"\nmode = "replace"', 'input = "upper"\nmode = "replace"\nscale = 2.0', 1
    )
    path = written(tmp_path, dataset())
    assert set(loaded(path).truth) == {"surf_next", "upper_next"}
    assert set(loaded(path, text=scaled).truth) == {"surf_next"}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (
            '[[fields.input]]\ninput = "fixed"\nvariables = ["lsm"]\nstatic = true\n',
            "tables name the same input",
        ),
        ('[[forcing]]\ninput = "more"\n', r"\[fields\] cannot supply a \[\[forcing\]\]"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(more: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        parse_spec(SPEC + more)


def test_a_split_beyond_the_file_is_said_to_be_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path, dataset())
    assert loaded(path).notes == ()
    (note,) = loaded(path, text=SPEC.replace("2020-01-09", "2020-03-01")).notes
    assert "covers 2020-01-01T00 to 2020-01-08T21: fields.test 2020-01-05 to 2020-03-01 is cut short" in note
