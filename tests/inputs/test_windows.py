"""Forecasters of a table, from its rows to the rollout: against the loop that their owners write, in NumPy.

The loop keeps a list of rows and appends one a call: the targets are forecasts, known columns and the calendar come
from the table, every other feature repeats its last value.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tqs_onnx as tqs
from tests.rollouts import model, values
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import Data, DataOptions, read_data, read_spec
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.spec.windows_table import Scaler
from tqs_passes.errors import InputError

N = 160
HIDDEN = 24
#: float32 sums of some 20 terms, rolled out a few steps.
CLOSE = 2e-5


def column_values() -> dict[str, np.ndarray]:
    t = np.arange(N)
    rng = np.random.default_rng(5)
    load = 50 + 20 * np.sin(2 * np.pi * t / 24) + rng.normal(size=N)
    temp = 10 + 5 * np.cos(2 * np.pi * t / 24) + rng.normal(size=N)
    return {"load": load, "temp": temp, "rain": rng.random(N)}


COLUMNS = column_values()
HOUR = np.arange(N) % 24


def written(folder: Path) -> Path:
    """Write the table, hourly from a midnight on."""
    times = np.datetime64("2021-03-01T00", "h") + np.arange(N)
    rows = [
        ",".join([str(t).replace("T", " ") + ":00", *(repr(float(c[i])) for c in COLUMNS.values())])
        for i, t in enumerate(times)
    ]
    path = folder / "load.csv"
    path.write_text("\n".join(["date," + ",".join(COLUMNS), *rows]) + "\n")
    return path


def network(shape: tuple[int, ...], out: tuple[int, ...], seed: int = 0) -> tuple[onnx.ModelProto, Any]:
    """Return y = tanh(flat(x) · A) · B of the shapes without batch, and the same in NumPy, float64, for one window."""
    a = values(math.prod(shape), HIDDEN, seed=seed, scale=0.4 * math.prod(shape) ** -0.5)
    b = values(HIDDEN, math.prod(out), seed=seed + 1, scale=HIDDEN**-0.5)
    ports = f"(float[b, {', '.join(map(str, shape))}] x) => (float[{', '.join(map(str, ('b', *out)))}] y)"
    shapes = f"<int64[{len(out) + 1}] s = {{{', '.join(map(str, (-1, *out)))}}}>"
    proto = model(
        f"{ports} {shapes} {{ f = Flatten(x)  p = MatMul(f, A)  h = Tanh(p)  q = MatMul(h, B)  y = Reshape(q, s) }}",
        {"A": a, "B": b},
    )
    wide = (a.astype(np.float64), b.astype(np.float64))
    return proto, lambda x: (np.tanh(np.ravel(x) @ wide[0]) @ wide[1]).reshape(out)


@dataclass(frozen=True)
class Loop:
    """What the owner of a model knows: its features in order, which are targets, and how both sides are scaled."""

    features: dict[str, np.ndarray]
    targets: tuple[str, ...]
    known: tuple[str, ...] = ()
    context: int = 6
    steps: int = 4
    per_call: int = 1
    mean: dict[str, float] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    inputs_scaled: bool = False
    outputs_scaled: bool = False
    turned: bool = False

    def row(self, i: int) -> dict[str, float]:
        return {name: float(column[i]) for name, column in self.features.items()}

    def scaled(self, name: str, value: float) -> float:
        return (value - self.mean.get(name, 0.0)) / self.std.get(name, 1.0)

    def window(self, rows: list[dict[str, float]]) -> np.ndarray:
        kept = rows[-self.context :]
        x = np.array([[self.scaled(n, v) if self.inputs_scaled else v for n, v in r.items()] for r in kept])
        return x.T if self.turned else x

    def run(self, f: Any, start: int) -> np.ndarray:
        """Return the forecasts in the unit of the output, [time, target]."""
        rows = [self.row(start + i) for i in range(self.context)]
        made = []
        for call in range(self.steps):
            forecast = np.reshape(f(self.window(rows)), (self.per_call, len(self.targets)))
            made.append(forecast)
            for j in range(self.per_call):
                new = dict(rows[-1])
                new |= {n: self.row(start + self.context + call * self.per_call + j)[n] for n in self.known}
                for name, value in zip(self.targets, forecast[j], strict=True):
                    back = (
                        value * self.std.get(name, 1.0) + self.mean.get(name, 0.0)
                        if self.outputs_scaled
                        else value
                    )
                    if name in new:
                        new[name] = back
                rows.append(new)
        return np.concatenate(made)

    def truth(self, start: int, horizon: int) -> np.ndarray:
        first = start + self.context
        return np.array(
            [
                [
                    self.scaled(n, COLUMNS[n][i]) if self.outputs_scaled else COLUMNS[n][i]
                    for n in self.targets
                ]
                for i in range(first, first + horizon)
            ]
        )


def data_of(folder: Path, proto: onnx.ModelProto, toml: str, **options: Any) -> tuple[Data, onnx.ModelProto]:
    folder.mkdir(exist_ok=True)
    (folder / "rollout.toml").write_text(toml)
    onnx.save(proto, folder / "m.onnx")
    data = read_data(
        DataOptions(folder / "rollout.toml", written(folder), **options), open_source(folder / "m.onnx")
    )
    return data, proto


def check(data: Data, proto: onnx.ModelProto, f: Any, loop: Loop, *, horizon: int | None = None) -> None:
    """Compare contexts, truth and rollout of the test rows with the loop."""
    held = data.evaluation
    assert held.rows is not None
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=1))
    made = Engine(session, data.spec, held).run().outputs["y"]
    horizon = horizon or loop.steps * loop.per_call
    for i, start in enumerate(held.rows[:, 0]):
        wanted = loop.run(f, int(start))
        np.testing.assert_allclose(made[i].reshape(wanted.shape), wanted, rtol=CLOSE, atol=CLOSE)
        truth = held.truth["y"][i]
        assert truth.shape == (horizon, *made[i].shape[1:])
        np.testing.assert_allclose(truth.reshape(horizon, -1), loop.truth(int(start), horizon), rtol=1e-9)


SPLITS = """train = [0, 80]
validation = [80, 120]
test = [120, 160]
"""
HEAD = """version = 1
rollout = { steps = 4, batch_axis = 0 }
trajectory = { outputs = ["y"], time_axis = 1 }
[windows]
input = "x"
"""
LOAD = HEAD + 'columns = ["load", "temp", "rain"]\ntargets = ["load"]\n' + SPLITS
NUMBERS = {"mean": {"load": 48.0, "temp": 9.0, "rain": 0.4}, "std": {"load": 15.0, "temp": 4.0, "rain": 0.3}}
GIVEN = "scaler = { mean = [48.0, 9.0, 0.4], std = [15.0, 4.0, 0.3] }\n"


def test_one_value_a_call_is_appended_to_the_feature_of_the_target(tmp_path: Path) -> None:
    proto, f = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD)
    check(data, proto, f, Loop(COLUMNS, ("load",)))
    assert [v.name for v in data.spec.variable] == ["load"]


def test_several_values_a_call_are_appended_in_their_order(tmp_path: Path) -> None:
    proto, f = network((6, 3), (2,))
    data, _ = data_of(tmp_path, proto, LOAD)
    check(data, proto, f, Loop(COLUMNS, ("load",), per_call=2))


def test_the_future_rows_of_a_known_feature_are_read(tmp_path: Path) -> None:
    proto, f = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD + 'known = ["temp"]\n')
    check(data, proto, f, Loop(COLUMNS, ("load",), ("temp",)))


def test_no_future_row_is_read_for_a_feature_that_is_not_known(tmp_path: Path) -> None:
    proto, _ = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD)
    windows = data.evaluation.arrays["x"]
    assert windows.shape[1:] == (4, 6, 3)
    np.testing.assert_array_equal(windows[:, 3, -3:], np.repeat(windows[:, 0, -1:], 3, axis=1))


def test_several_targets_of_several_times_are_appended_each_to_its_feature(tmp_path: Path) -> None:
    proto, f = network((6, 3), (2, 2))
    toml = LOAD.replace('["load"]\n', '["temp", "load"]\n')
    data, _ = data_of(tmp_path, proto, toml)
    check(data, proto, f, Loop(COLUMNS, ("temp", "load"), per_call=2))
    assert data.scoring.scales is not None
    assert data.scoring.scales == pytest.approx(
        {n: COLUMNS[n][:80].std() for n in ("temp", "load")}, rel=1e-12
    )


def test_one_row_a_call_of_several_targets(tmp_path: Path) -> None:
    proto, f = network((6, 3), (2,))
    toml = LOAD.replace(", time_axis = 1", "").replace('["load"]\n', '["load", "rain"]\n')
    data, _ = data_of(tmp_path, proto, toml)
    check(data, proto, f, Loop(COLUMNS, ("load", "rain")))


def test_all_features_are_fed_back_without_a_forcing(tmp_path: Path) -> None:
    proto, f = network((6, 3), (2, 3))
    toml = LOAD.replace('targets = ["load"]\n', "")
    data, _ = data_of(tmp_path, proto, toml)
    assert not data.spec.forcing
    check(data, proto, f, Loop(COLUMNS, tuple(COLUMNS), per_call=2))


def test_features_may_come_before_time(tmp_path: Path) -> None:
    proto, f = network((3, 6), (2, 2))
    toml = LOAD.replace('["load"]\n', '["load", "temp"]\n').replace("time_axis = 1", "time_axis = 2")
    data, _ = data_of(tmp_path, proto, toml)
    turned = Loop(COLUMNS, ("load", "temp"), per_call=2, turned=True)
    check_turned = lambda x: f(x).T  # noqa: E731
    held = data.evaluation
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=1))
    made = Engine(session, data.spec, held).run().outputs["y"]
    assert held.rows is not None
    for i, start in enumerate(held.rows[:, 0]):
        np.testing.assert_allclose(made[i], turned.run(check_turned, int(start)), rtol=CLOSE, atol=CLOSE)
        np.testing.assert_allclose(held.truth["y"][i], turned.truth(int(start), 8), rtol=1e-9)


def test_a_univariate_model_of_one_column_with_an_axis_of_one(tmp_path: Path) -> None:
    proto, f = network((6, 1), (2,))
    toml = LOAD.replace('["load", "temp", "rain"]', '["load"]')
    data, _ = data_of(tmp_path, proto, toml)
    check(data, proto, f, Loop({"load": COLUMNS["load"]}, ("load",), per_call=2))


def test_a_forecast_in_one_call_feeds_nothing_back(tmp_path: Path) -> None:
    proto, f = network((6, 3), (5,))
    data, _ = data_of(tmp_path, proto, LOAD.replace("steps = 4", "steps = 1"))
    assert not data.spec.feedback
    check(data, proto, f, Loop(COLUMNS, ("load",), steps=1, per_call=5))


def test_lags_and_the_calendar_are_features_by_name(tmp_path: Path) -> None:
    """A row of features without a time axis: [b, F] → [b, 1], the commonest of gradient-free regressors."""
    proto, f = network((4,), (1,))
    toml = LOAD.replace(
        '["load", "temp", "rain"]', '["load", "lag(load, 24)", "sin(time.hour)", "time.weekday"]'
    )
    data, _ = data_of(tmp_path, proto, toml)
    days = np.arange(N) // 24
    features = {
        "load": COLUMNS["load"],
        "lag": np.concatenate([np.full(24, np.nan), COLUMNS["load"][:-24]]),
        "sin": np.sin(2 * np.pi * HOUR / 24),
        "weekday": days % 7,  # 1 March 2021 was a Monday
    }
    loop = Loop(features, ("load",), ("lag", "sin", "weekday"), context=1)
    held = data.evaluation
    assert held.rows is not None
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=1))
    made = Engine(session, data.spec, held).run().outputs["y"]
    for i, first in enumerate(held.rows[:, 0]):
        wanted = loop.run(f, int(first) + 24)  # the rows begin with those that the lag reads
        np.testing.assert_allclose(made[i].reshape(wanted.shape), wanted, rtol=CLOSE, atol=CLOSE)


def test_a_lag_that_reaches_into_the_forecast_is_refused(tmp_path: Path) -> None:
    proto, _ = network((2,), (1,))
    toml = LOAD.replace('["load", "temp", "rain"]', '["load", "lag(load, 2)"]')
    with pytest.raises(
        InputError, match="a lag of a target reaches values that the rollout itself forecasts"
    ):
        data_of(tmp_path, proto, toml)


# Scalers


@pytest.mark.parametrize("sides", ["both", "input", "output"])
def test_numbers_of_a_scaler_are_applied_to_the_sides_that_are_scaled(tmp_path: Path, sides: str) -> None:
    proto, f = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD + GIVEN + f'scaled = "{sides}"\n')
    loop = Loop(
        COLUMNS, ("load",), **NUMBERS, inputs_scaled=sides != "output", outputs_scaled=sides != "input"
    )
    check(data, proto, f, loop)
    wide = 1.0 if sides == "input" else 15.0
    assert data.evaluation.factors == {"load": wide}
    assert data.evaluation.scales == pytest.approx({"load": COLUMNS["load"][:80].std() / wide}, rel=1e-12)


def test_the_target_may_have_a_scaler_of_its_own(tmp_path: Path) -> None:
    proto, f = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD + GIVEN + "target_scaler = { min = 20.0, max = 90.0 }\n")

    class Two(Loop):
        def scaled(self, name: str, value: float) -> float:
            return (value - 48) / 15 if name == "load" else super().scaled(name, value)

    loop = Two(
        COLUMNS,
        ("load",),
        mean=NUMBERS["mean"] | {"load": 20.0},
        std=NUMBERS["std"] | {"load": 70.0},
        inputs_scaled=True,
        outputs_scaled=True,
    )
    held = data.evaluation
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=1))
    made = Engine(session, data.spec, held).run().outputs["y"]
    assert held.rows is not None
    for i, start in enumerate(held.rows[:, 0]):
        np.testing.assert_allclose(made[i], loop.run(f, int(start))[:, 0], rtol=CLOSE, atol=CLOSE)
        wanted = (COLUMNS["load"][start + 6 : start + 10] - 20) / 70
        np.testing.assert_allclose(held.truth["y"][i], wanted, rtol=1e-9)


NAMES = ["rain", "load", "temp"]
FILES = {
    "standard.json": {
        "mean_": [0.4, 48.0, 9.0],
        "scale_": [0.3, 15.0, 4.0],
        "var_": [1, 1, 1],
        "feature_names_in_": NAMES,
    },
    "minmax.json": {
        "data_min_": [0.4, 48.0, 9.0],
        "data_max_": [0.7, 63.0, 13.0],
        "feature_names_in_": NAMES,
    },
    "minmax.npz": {
        "min_": [-1.3333333333333333, -3.2, -2.25],
        "scale_": [3.3333333333333335, 1 / 15, 0.25],
        "feature_names_in_": NAMES,
    },
    "robust.npz": {"center_": [48.0, 9.0, 0.4], "scale_": [15.0, 4.0, 0.3]},
    "plain.json": {"mean": [48.0, 9.0, 0.4], "std": [15.0, 4.0, 0.3]},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_scikit_learns_numbers_is_read(tmp_path: Path, name: str) -> None:
    """`scale_` divides in a StandardScaler and multiplies in a MinMaxScaler; features are found by their names."""
    if name.endswith(".json"):
        (tmp_path / name).write_text(json.dumps(FILES[name]))
    else:
        np.savez(tmp_path / name, **{k: np.array(v) for k, v in FILES[name].items()})
    proto, f = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD + f'scaler = {{ file = "{name}" }}\n')
    check(data, proto, f, Loop(COLUMNS, ("load",), **NUMBERS, inputs_scaled=True, outputs_scaled=True))


QUANTIZED = tqs.QuantizeOptions(tqs.Budget(compression=1.5), run=RunOptions("cpu", threads=1))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose scalers come from files."""
    folder = tmp_path_factory.mktemp("quantized")
    tqs.quantize(*with_scaler_files(folder, "scaler.json"), QUANTIZED, folder / "run")
    return folder


BAD_FILES: list[tuple[dict[str, Any], str]] = [
    ({"min_": [0, 0, 0], "scale_": [5, 1]}, "holds 3 in min and 2 in scale"),
    ({"data_min_": [0, 0], "data_max_": [1, 1, 1]}, "holds 2 in data_min and 3 in data_max"),
    ({"mean_": [0, 1], "scale_": [1, 1, 1]}, "holds 2 in mean and 3 in scale"),
    (
        {"mean_": [0, 1], "scale_": [1, 1], "feature_names_in_": NAMES},
        "holds 3 in feature_names_in_ and 2 in the scaler",
    ),
    ({"data_min_": [0], "data_max_": [1], "feature_range": [0, 1, 2]}, "feature_range is not two rising"),
    ({"data_min_": [0], "data_max_": [1], "feature_range": [1, 1]}, "feature_range is not two rising"),
    ({"data_min_": [0], "data_max_": [1], "feature_range": ["a", "b"]}, "feature_range is not numbers"),
    ({"min_": [0], "scale_": [0]}, "min 0 and scale 0 of column 0 scale nothing"),
    ({"min_": [0], "scale_": [1e-320]}, "of column 0 scale nothing"),
    ({"mean_": [0], "var_": [-1]}, "mean 0 and var -1 of column 0 scale nothing"),
    ({"mean_": [0, 0, 0], "std": [1, -1, 1]}, "mean 0 and std -1 of column 1 scale nothing"),
    ({"min": [0], "max": [-1]}, "min 0 and max -1 of column 0 scale nothing"),
]


@pytest.mark.parametrize(("held", "expected"), BAD_FILES)
def test_a_file_whose_numbers_scale_nothing_is_refused_in_a_line(
    tmp_path: Path, held: dict[str, Any], expected: str
) -> None:
    (tmp_path / "scaler.json").write_text(json.dumps(held))
    proto, _ = network((6, 3), (1,))
    with pytest.raises(InputError) as caught:
        data_of(tmp_path, proto, LOAD + 'scaler = { file = "scaler.json" }\n')
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_does_not_vary_is_scaled_as_scikit_learn_does(tmp_path: Path) -> None:
    """MinMaxScaler: a range of 0 counts as 1, scale_ = (high − low) / range, min_ = low − data_min_ · scale_."""
    held = {"data_min_": [48.0, 9.0, 0.4], "data_max_": [63.0, 9.0, 0.7], "feature_range": [-1, 1]}
    (tmp_path / "scaler.json").write_text(json.dumps(held))
    proto, _ = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD + 'scaler = { file = "scaler.json" }\n')
    windows = data.spec.windows
    assert windows is not None
    assert isinstance(windows.scaler, Scaler)
    offsets, widths = windows.scaler.affine()
    assert (9.0 - offsets[1]) / widths[1] == pytest.approx(-1.0)
    assert widths[1] == pytest.approx(0.5)


def test_a_pickled_scaler_is_not_read(tmp_path: Path) -> None:
    proto, _ = network((6, 3), (1,))
    with pytest.raises(InputError, match=r"is a pickle, which could run any program.*numpy\.savez"):
        data_of(tmp_path, proto, LOAD + 'scaler = { file = "scaler.pkl" }\n')


def test_a_scaler_of_another_number_of_columns_is_refused(tmp_path: Path) -> None:
    proto, _ = network((6, 3), (1,))
    with pytest.raises(InputError, match=r"has 2 numbers, but windows\.columns names 3 columns"):
        data_of(tmp_path, proto, LOAD + "scaler = { mean = [1.0, 2.0], std = [1.0, 2.0] }\n")


def test_the_scaler_of_the_training_rows_sees_no_other_row(tmp_path: Path) -> None:
    proto, f = network((6, 3), (1,))
    data, _ = data_of(tmp_path, proto, LOAD + 'scaler = "train"\n')
    mean = {n: float(c[:80].mean()) for n, c in COLUMNS.items()}
    std = {n: float(c[:80].std()) for n, c in COLUMNS.items()}
    check(
        data, proto, f, Loop(COLUMNS, ("load",), mean=mean, std=std, inputs_scaled=True, outputs_scaled=True)
    )


def test_the_training_rows_may_be_those_of_the_evaluation_table(tmp_path: Path) -> None:
    proto, _ = network((6, 3), (1,))
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "rollout.toml").write_text(LOAD + 'scaler = "train"\n')
    spec = read_spec(
        DataOptions(tmp_path / "rollout.toml", "made:4", written(tmp_path)), open_source(tmp_path / "m.onnx")
    )
    assert spec.windows is not None
    assert isinstance(spec.windows.scaler, Scaler)
    expected = [float(c[:80].mean()) for c in COLUMNS.values()]
    np.testing.assert_allclose(spec.windows.scaler.affine()[0], expected, rtol=1e-12)  # sums in another order


def test_the_scaler_of_the_graph_scales_the_truth_and_what_is_fed_back(tmp_path: Path) -> None:
    """The graph subtracts and divides itself; what it returns is still scaled."""
    inner, f = network((6, 3), (1,))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in inner.graph.initializer if t.name in "AB"}
    mean, std = np.float32([48, 9, 0.4]), np.float32([15, 4, 0.3])
    proto = model(
        """(float[b, 6, 3] x) => (float[b, 1] y) { c = Sub(x, mu)  z = Div(c, sd)
        f = Flatten(z)  p = MatMul(f, A)  h = Tanh(p)  y = MatMul(h, B) }""",
        {**weights, "mu": mean, "sd": std},
    )
    data, _ = data_of(tmp_path, proto, LOAD + 'scaler = "graph"\n')
    scale = {n: float(s) for n, s in zip(COLUMNS, std, strict=True)}
    middle = {n: float(m) for n, m in zip(COLUMNS, mean, strict=True)}
    loop = Loop(COLUMNS, ("load",), mean=middle, std=scale, outputs_scaled=True)
    check(data, proto, lambda x: f((x - mean) / std), loop)


def test_a_graph_without_a_scaler_is_said_to_have_none(tmp_path: Path) -> None:
    proto, _ = network((6, 3), (1,))
    with pytest.raises(InputError, match="no constants of Sub and Div, or Mul and Add, follow input 'x'"):
        data_of(tmp_path, proto, LOAD + 'scaler = "graph"\n')


def with_scaler_files(folder: Path, file: str) -> tuple[Path, DataOptions]:
    """Write a model, its table, and a spec that takes the scalers of inputs and targets from two files."""
    proto, _ = network((6, 3), (1,))
    onnx.save(proto, folder / "m.onnx")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(FILES["plain.json"]))
    (folder / "target.json").write_text(json.dumps({"mean": [48.0], "std": [15.0]}))
    more = f'scaler = {{ file = "{file}" }}\ntarget_scaler = {{ file = "target.json" }}\n'
    (folder / "rollout.toml").write_text(LOAD + more)
    return folder / "m.onnx", DataOptions(folder / "rollout.toml", written(folder))


def test_the_files_of_scalers_are_read_files(tmp_path: Path) -> None:
    _, data = with_scaler_files(tmp_path, "numbers/scaler.json")
    own = {"scaler": tmp_path / "numbers" / "scaler.json", "target_scaler": tmp_path / "target.json"}
    assert data.read_files == data.files | own


@pytest.mark.parametrize("changed", ["scaler.json", "target.json"])
def test_a_manifest_whose_scaler_changed_is_refused(
    tmp_path: Path, quantized: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "p"))
    inputs = json.loads((folder / "run" / "manifest.json").read_text())["inputs"]
    role = "scaler" if changed == "scaler.json" else "target_scaler"
    assert inputs[role] == {changed: hashlib.sha256((folder / changed).read_bytes()).hexdigest()}
    (folder / changed).write_text((folder / changed).read_text().replace("48.0", "47.0"))
    assert main(["build", str(folder / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 2
    assert f"the content of {role} differs from that in the manifest" in capsys.readouterr().err


def test_a_manifest_finds_its_scalers_again(quantized: Path, tmp_path: Path) -> None:
    assert main(["build", str(quantized / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 0
    files = [folder / "m.tqs.onnx" for folder in (quantized / "run", tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_file_of_a_scaler_is_not_overwritten(tmp_path: Path) -> None:
    model_file, data = with_scaler_files(tmp_path, "run/plan.json")
    before = (tmp_path / "run" / "plan.json").read_bytes()
    with pytest.raises(InputError, match=r"plan\.json"):
        tqs.quantize(model_file, data, QUANTIZED, tmp_path / "run", force=True)
    assert (tmp_path / "run" / "plan.json").read_bytes() == before


# What is asked for


@pytest.mark.parametrize(
    ("shape", "old", "new", "expected"),
    [
        ((1,), 'targets = ["load"]\n', "", "Name in windows.targets the columns that it forecasts"),
        (
            (7,),
            ", time_axis = 1",
            "",
            "holds 7 values a time, but windows.targets names 1. Set trajectory.time_axis = 1",
        ),
        ((2,), 'columns = ["load", "temp", "rain"]\n', "", "Set windows.columns"),
        ((2,), '["load"]\n', '["laod"]\n', "no target is a column of input 'x'"),
        ((2,), '["load"]\n', '["load"]\nknown = ["wind"]\n', "known names 'wind', which no column"),
        ((2,), '["load"]\n', '["load"]\nknown = ["load"]\n', "known names the target 'load'"),
    ],
)
def test_what_does_not_follow_is_asked_for_by_name(
    tmp_path: Path, shape: tuple[int, ...], old: str, new: str, expected: str
) -> None:
    proto, _ = network((6, 3), shape)
    assert old in LOAD
    with pytest.raises(InputError) as caught:
        data_of(tmp_path, proto, LOAD.replace(old, new))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "out", "toml"),
    [
        ((6, 3), (1,), LOAD + 'known = ["temp"]\nscaler = "train"\n'),
        ((6, 3), (2, 2), LOAD.replace('["load"]\n', '["load", "temp"]\n') + GIVEN + 'scaled = "input"\n'),
    ],
)
def test_quantize_takes_such_a_model(
    tmp_path: Path, shape: tuple[int, ...], out: tuple[int, ...], toml: str
) -> None:
    proto, _ = network(shape, out)
    (tmp_path / "rollout.toml").write_text(toml)
    onnx.save(proto, tmp_path / "m.onnx")
    data = DataOptions(tmp_path / "rollout.toml", written(tmp_path))
    made = tqs.quantize(tmp_path / "m.onnx", data, QUANTIZED)
    assert made.verification.compression >= 1.5
    assert set(made.verification.truth) == set(["load", "temp"][: len(out)])
    # in the unit of the table: an untrained network is wrong by about the size of the load itself
    assert 5 < made.verification.truth["load"].mae_fp32 < 100
