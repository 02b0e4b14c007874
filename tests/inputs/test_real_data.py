"""Windows of the real benchmark tables, where they are at hand."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.contexts.load import check_disjoint, load_contexts
from tqs_onnx.rollout.spec.signature import signature_of
from tqs_onnx.rollout.spec.spec import load_spec

ROLLOUT = Path(__file__).parents[2] / "models" / "tqs_models" / "timesfm" / "rollout.toml"
PORTS = "(float[b, n] context, bool[b, n] mask) => (float[b, 128, 10] forecast)"


def data(name: str) -> Path:
    folder = Path(os.environ.get("TQS_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not here; set TQS_DATA to the folder that holds it")
    return folder / name


def windows(path: Path, split: str, limit: int | None = None) -> Contexts:
    signature = signature_of(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {PORTS} {{}}'))
    return load_contexts(path, load_spec(ROLLOUT), signature, split=split, limit=limit)


def column(path: Path, name: str) -> np.ndarray:
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as stream:
        return np.array([float(row[name]) for row in csv.DictReader(stream)])


def test_etth1_has_twenty_test_windows_of_seven_series():
    contexts = windows(data("ETT-small/ETTh1.csv.gz"), "test")
    # (2880 − 512 − 500) // 96 + 1 = 20
    assert contexts.n_contexts == 20 * 7
    assert set(contexts.series or ()) == {"HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"}


def test_etth1_windows_hold_the_values_of_the_file():
    path = data("ETT-small/ETTh1.csv.gz")
    contexts = windows(path, "test")
    oil = column(path, "OT")
    assert contexts.series is not None
    assert contexts.rows is not None
    indices = [i for i, s in enumerate(contexts.series) if s == "OT"]
    assert len(indices) == 20
    for i in indices:
        start = contexts.rows[i, 0]
        np.testing.assert_array_equal(
            contexts.arrays["context"][i], oil[start : start + 512].astype(np.float32)
        )
        np.testing.assert_array_equal(contexts.truth["forecast"][i], oil[start + 512 : start + 1012])


def test_etth1_scales_are_of_the_first_year():
    path = data("ETT-small/ETTh1.csv.gz")
    scales = windows(path, "test").scales
    assert scales is not None
    assert scales["OT"] == pytest.approx(column(path, "OT")[:8640].std(), rel=1e-12)


def test_etth1_splits_are_disjoint():
    path = data("ETT-small/ETTh1.csv.gz")
    check_disjoint(windows(path, "validation"), windows(path, "test"))


def test_the_weather_sentinels_are_gone():
    contexts = windows(data("weather/weather.csv.gz"), "test", limit=64)
    assert contexts.arrays["context"].min() > -9000
    assert contexts.n_contexts == 64


def test_the_weather_scales_do_not_see_the_sentinels():
    path = data("weather/weather.csv.gz")
    scales = windows(path, "validation", limit=21).scales
    assert scales is not None
    raw = column(path, "OT")[: int(0.7 * 52696)]
    # CO₂ varies by some 20 ppm; 50 cells of −9999 would make it hundreds.
    assert scales["OT"] < 0.5 * raw.std()


def test_a_table_without_a_header_is_cut_as_well():
    contexts = windows(data("exchange_rate/exchange_rate.txt.gz"), "test")
    assert set(contexts.series or ()) == {str(i) for i in range(8)}
