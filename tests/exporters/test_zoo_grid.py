"""The gulf models: their files, their climatology, and their skill against persistence and the damped anomaly."""

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import Session, SessionOptions, open_session
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.spec import load_spec
from tqs_onnx.verification.manifest import licence_of
from tqs_passes.files.model import load_model
from tqs_passes.survey.survey import find_weights

ZOO = Path(__file__).parents[2] / "models" / "zoo"
MODELS = ("pangu_mini", "aurora_mini")
TO_BEAT = {1: (1.69, 1.89, 1.34), 4: (2.26, 2.67, 1.59)}
"""RMSE of the damped anomaly on 2007 by steps of 6 h: u10, v10 (m/s), t2m (K)."""


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    """The module models/zoo/gulf.py, which reads the data."""
    pytest.importorskip("h5py", reason="needs h5py, of the [export] extra")
    sys.path.insert(0, str(ZOO))
    try:
        return importlib.import_module("gulf")
    finally:
        sys.path.remove(str(ZOO))


@pytest.fixture(scope="module")
def gulf(zoo: ModuleType):
    if not (zoo.data_folder() / "era5_2007.nc").is_file():
        pytest.skip("gridded/era5_gulf is not under $TQS_DATA (or ../shared/data): skill cannot be judged")
    return zoo.load_gulf(zoo.data_folder())


def tool(name: str) -> ModuleType:
    sys.path.insert(0, str(ZOO))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ZOO))


@cache
def session(name: str) -> Session:
    return open_session(ZOO / name / "model.onnx", options=SessionOptions(threads=1))


@pytest.mark.parametrize("name", MODELS)
def test_the_file_is_at_most_eight_megabytes(name: str) -> None:
    assert (ZOO / name / "model.onnx").stat().st_size <= 8_000_000


@pytest.mark.parametrize("name", MODELS)
def test_a_manifest_can_carry_the_licence_of_the_data(name: str) -> None:
    model = onnx.load(ZOO / name / "model.onnx")
    licence = licence_of({p.key: p.value for p in model.metadata_props})
    assert licence is not None
    assert "contains modified Copernicus Climate Change Service information" in licence


@pytest.mark.parametrize("name", MODELS)
def test_the_spec_fits_the_model(name: str) -> None:
    check_spec(load_spec(ZOO / name / "rollout.toml"), session(name).signature)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_that_is_read_by_a_matmul_kept_the_name_of_its_parameter(name: str) -> None:
    graph = onnx.load(ZOO / name / "model.onnx").graph
    stored = {t.name for t in graph.initializer}
    read = {n.input[1] for n in graph.node if n.op_type == "MatMul"} & stored
    assert read
    assert all(w.endswith(".weight") for w in read)


def test_the_bias_tables_of_pangu_mini_are_stored_in_both_forms() -> None:
    survey = find_weights(load_model(ZOO / "pangu_mini" / "model.onnx"))[1]
    names = [w.label for w in survey.weights]
    assert sum(n.endswith("attention.bias") for n in names) == 4
    assert sum(n.endswith("attention.table") for n in names) == 4


def test_the_masks_of_shifted_windows_are_no_weights() -> None:
    for name in MODELS:
        survey = find_weights(load_model(ZOO / name / "model.onnx"))[1]
        assert sum("mask" in e.reason for e in survey.excluded) == 3


def test_aurora_mini_has_a_head_for_each_variable() -> None:
    names = {t.name for t in onnx.load(ZOO / "aurora_mini" / "model.onnx").graph.initializer}
    assert {f"heads.{v}.weight" for v in ("u10", "v10", "t2m")} <= names


@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_does_not_depend_on_its_neighbours_in_the_batch(name: str) -> None:
    rng = np.random.default_rng(0)
    shape = [int(n) for n in session(name).signature.input("state").shape or () if isinstance(n, int)]
    state = rng.standard_normal((3, *shape), np.float32) + np.array([0, 0, 300], np.float32)[:, None, None]
    time = rng.standard_normal((3, 8), np.float32)

    def run(rows: slice) -> np.ndarray:
        s = session(name)
        return s.run({"state": s.value(state[rows]), "time": s.value(time[rows])})["next"].numpy()

    # Kernels sum in another order for another batch: a few float32 roundings of values near 300.
    np.testing.assert_allclose(run(slice(None))[:1], run(slice(0, 1)), rtol=0, atol=1e-3)


def test_the_splits_follow_each_other_without_overlap(zoo: ModuleType) -> None:
    bounds = [np.datetime64(day) for name in ("train", "validation", "test") for day in zoo.SPLITS[name]]
    assert bounds == sorted(bounds)


def test_time_is_encoded_by_daily_and_annual_harmonics(zoo: ModuleType) -> None:
    noon = np.array([np.datetime64("2005-01-01T12", "s").astype(np.int64)])
    np.testing.assert_allclose(zoo.time_features(noon)[0, :4], [0, -1, 0, 1], atol=1e-6)
    later = zoo.time_features(noon + 86400)
    np.testing.assert_allclose(later[0, :4], zoo.time_features(noon)[0, :4], atol=1e-6)


def test_the_damped_anomaly_has_the_errors_known_for_2007(zoo: ModuleType, gulf) -> None:
    judge = zoo.Judge(gulf, "test", 4)
    rmse = judge.skill(judge.damped()).rmse
    for step, known in TO_BEAT.items():
        # Known figures come from another climatology (a smoothed mean by day and hour).
        np.testing.assert_allclose(rmse[step - 1], known, rtol=0.02)


def test_a_forecast_that_is_the_truth_has_no_error_and_full_correlation(zoo: ModuleType, gulf) -> None:
    judge = zoo.Judge(gulf, "test", 2, every=200)
    skill = judge.skill(np.stack([judge.truth(1), judge.truth(2)], axis=1))
    assert skill.rmse.max() == 0
    np.testing.assert_allclose(skill.correlation, 1, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_beats_the_damped_anomaly_at_6_and_at_24_hours(zoo: ModuleType, gulf, name: str) -> None:
    judge = zoo.Judge(gulf, "test", 4, every=14)  # every 42 h: all hours of the day in turn
    made = tool("gulf_evaluate").forecasts(ZOO / name / "model.onnx", judge, zoo.HISTORY[name])
    rmse, damped = judge.skill(made).rmse, judge.skill(judge.damped()).rmse
    for step, to_beat in TO_BEAT.items():
        assert (rmse[step - 1] < damped[step - 1]).all()
        assert (rmse[step - 1] < to_beat).all()


@pytest.mark.parametrize("name", MODELS)
def test_contexts_of_2007_roll_out_in_our_engine_with_truth(
    zoo: ModuleType, gulf, name: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "eval.npz", **tool("gulf_contexts").contexts(gulf, name, "test", 8, 5))
    spec = load_spec(ZOO / name / "rollout.toml")
    contexts = load_contexts(tmp_path / "eval.npz", spec, session(name).signature)
    made = Engine(session(name), spec, contexts).run().outputs["next"]
    assert made.shape == contexts.truth["next"].shape == (5, 8, 3, 7, 12)
    first = gulf.rows("test")[0] + zoo.STRIDE
    np.testing.assert_array_equal(contexts.truth["next"][0, 0], gulf.states[first + zoo.STRIDE])


def test_validation_contexts_come_from_late_2006(zoo: ModuleType, gulf) -> None:
    arrays = tool("gulf_contexts").contexts(gulf, "aurora_mini", "validation", 8, 4)
    first, stop = gulf.rows("validation")
    states = gulf.states[first:stop]
    assert all(any(np.array_equal(a, b) for b in states) for a in arrays["state"][:, 0])


def test_more_starts_than_the_split_holds_are_refused(zoo: ModuleType, gulf) -> None:
    with pytest.raises(ValueError, match="fewer than"):
        tool("gulf_contexts").contexts(gulf, "pangu_mini", "validation", 8, 5000)
