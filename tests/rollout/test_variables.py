import numpy as np
import pytest

from tqs_onnx.rollout.contexts.context_set import Contexts, std
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.rollout.variables import by_variable, sigma, steps_to_time, trajectory_axis, variable_at
from tqs_passes.errors import InputError

GRID = """
version = 1
[rollout]
steps = 3
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[trajectory]
outputs = ["y"]
"""
T2M = '[[variable]]\nname = "t2m"\noutput = "y"\naxis = 1\nindex = 0\n'
WIND = '[[variable]]\nname = "u"\noutput = "y"\naxis = 1\nindex = 1\nscale = 5.0\n'
NONE = Contexts({}, {})


def grid(n: int = 2, steps: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((n, steps, 2, 4), np.float32)


def test_variables_are_channels_of_an_output():
    y = grid()
    parts = by_variable({"y": y}, parse_spec(GRID + T2M + WIND), NONE)
    assert list(parts) == ["t2m", "u"]
    np.testing.assert_array_equal(parts["u"], y[:, :, 1])


def test_without_variables_an_output_is_one():
    assert list(by_variable({"y": grid()}, parse_spec(GRID), NONE)) == ["y"]


def test_series_are_variables_with_contexts_of_their_own():
    y = np.arange(6.0).reshape(3, 2)
    parts = by_variable({"y": y}, parse_spec(GRID), Contexts({}, {}, ("b", "a", "b")))
    assert list(parts) == ["b", "a"]
    np.testing.assert_array_equal(parts["b"], y[[0, 2]])


def test_a_slice_of_contexts_takes_its_own_labels():
    y = np.arange(4.0).reshape(2, 2)
    parts = by_variable({"y": y}, parse_spec(GRID), Contexts({}, {}, ("b", "a", "b")), slice(1, 3))
    np.testing.assert_array_equal(parts["a"], y[:1])


def test_a_wrong_number_of_labels_is_refused():
    with pytest.raises(InputError, match="2 trajectories, but 3 series labels"):
        by_variable({"y": np.zeros((2, 2))}, parse_spec(GRID), Contexts({}, {}, ("b", "a", "b")))


def test_columns_are_variables_along_the_last_axis():
    y = np.arange(8.0).reshape(2, 2, 2)
    parts = by_variable({"y": y}, parse_spec(GRID), Contexts({}, {}, columns=("a", "b")))
    np.testing.assert_array_equal(parts["b"], y[..., 1])


def test_a_missing_output_is_named():
    with pytest.raises(InputError, match="no values for output 'y'"):
        by_variable({}, parse_spec(GRID + T2M), NONE)


@pytest.mark.parametrize(
    ("old", "new", "axis", "expected"),
    [
        ("batch_axis = 0", "batch_axis = 0", 1, 2),
        ("batch_axis = 0", "batch_axis = 1", 0, 2),
        ("batch_axis = 0", "", 0, 2),
        ('["y"]', '["y"]\ntime_axis = 1', 2, 2),
        ('["y"]', '["y"]\ntime_axis = 3', 2, 3),
        ('["y"]', '["y"]\nselect = {axis = 1, index = 0}', 2, 2),
        ('["y"]', '["y"]\nselect = {axis = 1, start = 0}', 2, 3),
    ],
)
def test_an_axis_of_the_output_is_found_in_the_trajectory(old, new, axis, expected):
    assert trajectory_axis(parse_spec(GRID.replace(old, new)), axis) == expected


def test_the_variable_at_a_position_is_named():
    spec = parse_spec(GRID + T2M + WIND)
    assert variable_at(spec, "y", (0, 0, 1, 3)) == "u"
    assert variable_at(spec, "y", (0, 0, 2, 3)) == "y"


def test_steps_are_times_without_a_time_axis():
    assert steps_to_time(parse_spec(GRID), 3) == 3


def test_times_are_cut_to_the_length():
    spec = parse_spec(
        GRID.replace("steps = 3", "steps = 3\nlength = 20").replace('["y"]', '["y"]\ntime_axis = 1')
    )
    assert [steps_to_time(spec, t, 8) for t in range(4)] == [0, 8, 16, 20]


def test_sigma_takes_the_scale_of_the_file_first():
    contexts = Contexts({"x": grid()[:, 0]}, {}, scales={"u": 99.0})
    assert sigma(parse_spec(GRID + T2M + WIND), contexts, {"y": grid()}).values["u"] == 5.0


def test_sigma_takes_the_training_rows_next():
    contexts = Contexts({"x": np.ones((2, 4))}, {}, ("m/s", "b"), scales={"m/s": 2.0, "b": 3.0})
    found = sigma(parse_spec(GRID), contexts, {"y": np.ones((2, 3, 4))})
    assert found.values == {"m/s": 2.0, "b": 3.0}


def test_sigma_takes_the_history_of_the_context_next():
    x = grid()[:, 0]
    found = sigma(parse_spec(GRID + T2M), Contexts({"x": x}, {}), {"y": grid() * 7})
    assert found.values["t2m"] == pytest.approx(float(x[:, 0].astype(np.float64).std()), rel=1e-12)


def test_sigma_of_a_series_is_of_its_own_contexts():
    x = np.array([[0.0, 2.0], [0.0, 20.0], [0.0, 2.0]])
    contexts = Contexts({"x": x}, {}, ("a", "b", "a"))
    assert sigma(parse_spec(GRID), contexts, {"y": x}).values == {"a": 1.0, "b": 10.0}


def test_sigma_of_columns_is_of_each_column():
    x = np.array([[[0.0, 0.0], [2.0, 20.0]]])
    contexts = Contexts({"x": x}, {}, columns=("a", "b"))
    assert sigma(parse_spec(GRID), contexts, {"y": x}).values == {"a": 1.0, "b": 10.0}


def test_sigma_of_a_part_is_of_that_part_of_the_history():
    x = np.array([[0.0, 2.0, 50.0], [4.0, 6.0, 90.0]])
    spec = parse_spec(GRID.replace('"replace"', '"replace"\ninto = {axis = 1, stop = 2}'))
    # The population standard deviation of 0, 2, 4, 6 is √5.
    assert sigma(spec, Contexts({"x": x}, {}), {"y": x[:, None, :2]}).values["y"] == pytest.approx(
        5**0.5, rel=1e-12
    )


def test_sigma_of_a_forced_part_is_of_its_first_step():
    x = np.array([[[0.0, 9.0], [7.0, 9.0]], [[2.0, 9.0], [7.0, 9.0]]])
    text = GRID.replace('"replace"', '"replace"\ninto = {axis = 1, index = 0}')
    spec = parse_spec(text + '[[forcing]]\ninput = "x"\n')
    assert sigma(spec, Contexts({"x": x}, {}), {"y": x[:, :, 0]}).values["y"] == 1.0


def test_sigma_falls_back_to_the_nominal_trajectory():
    spec = parse_spec(GRID.replace('"replace"', '"replace"\nscale = 2'))
    y = np.array([[[0.0], [2.0]]])
    assert sigma(spec, Contexts({"x": np.ones((1, 1))}, {}), {"y": y}).values["y"] == 1.0


def test_a_constant_series_gets_one_and_is_named():
    x = np.full((2, 5), 0.1)
    found = sigma(parse_spec(GRID), Contexts({"x": x}, {}), {"y": x})
    assert found.values == {"y": 1.0}
    assert found.constant == {"y"}


def test_a_deviation_is_the_same_in_blocks(monkeypatch):
    array = np.random.default_rng(0).standard_normal((7, 5, 3)).astype(np.float32)
    whole = std(array)
    assert whole == pytest.approx(float(array.astype(np.float64).std()), rel=1e-12)
    monkeypatch.setattr("tqs_onnx.rollout.contexts.context_set._BLOCK_VALUES", 31)
    assert std(array) == pytest.approx(whole, rel=1e-12)
    assert std(np.float64(3.0)) == 0.0


def test_rounding_is_not_variation():
    assert std(np.full(1001, 0.1)) == 0.0


def test_several_outputs_and_series_have_joint_names():
    contexts = Contexts({"x": np.ones((2, 3))}, {}, ("a", "b"), scales={"a": 2.0, "b": 3.0})
    spec = parse_spec(GRID.replace('["y"]', '["y", "z"]'))
    found = sigma(spec, contexts, {"y": np.ones((2, 3)), "z": np.ones((2, 3))})
    assert found.values == {"y/a": 2.0, "y/b": 3.0, "z/a": 2.0, "z/b": 3.0}


def test_a_past_that_does_not_vary_gives_way_to_the_nominal_trajectory() -> None:
    nominal = np.array([[[0.0], [2.0]]])
    found = sigma(parse_spec(GRID), Contexts({"x": np.zeros((1, 1))}, {}), {"y": nominal})
    assert (found.values, found.constant) == ({"y": 1.0}, frozenset())
