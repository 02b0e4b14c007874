"""Made contexts: keyed and independent, in the units of the graph, coherent, bounded, and within what readers allow."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rollouts import model, opened, spec_of, values
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.made.draw import draw
from tqs_onnx.rollout.made.fields import LEVEL, made_field
from tqs_onnx.rollout.made.make import WARM_UP, made_contexts_of
from tqs_onnx.rollout.made.recipe import Recipe, recipe
from tqs_onnx.rollout.made.request import InputScale, MadeRequest
from tqs_onnx.rollout.made.series import PERIODS, made_series, season, smooth_noise
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_passes.errors import InputError

HEAD = "version = 1\n[rollout]\nsteps = {steps}\nbatch_axis = 0\n"
TAIL = '[trajectory]\noutputs = ["y"]\n'


def spec(tables: str, steps: int = 4) -> RolloutSpec:
    return parse_spec(HEAD.format(steps=steps) + tables + TAIL)


def made(
    folder: Path,
    graph: str,
    weights: dict[str, NDArray[np.generic]],
    rollout: RolloutSpec,
    n: int = 16,
    seed: int = 0,
    scales: tuple[InputScale, ...] = (),
) -> Contexts:
    source = opened(folder, model(graph, weights))
    check_spec(rollout, source.signature)
    request = MadeRequest(n, seed)
    return made_contexts_of(source.path, source.lifted, source.signature, rollout, request, scales)


def recipe_of(folder: Path, name: str, shape: tuple[int, ...], rollout: RolloutSpec) -> Recipe:
    """Return the recipe of an input of the model that `made` wrote into the folder."""
    source = open_source(folder / "m.onnx")
    port = source.signature.input(name)
    return recipe(port, shape, source.lifted, rollout, source.signature, {})


# ---------------------------------------------------------------- generators


def test_every_channel_of_a_series_has_mean_0_and_variance_1() -> None:
    series = made_series(np.random.default_rng(0), 200, 5)
    assert series.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-12)
    assert series.var(axis=0) == pytest.approx(np.ones(5), rel=1e-12)


def test_the_spectrum_of_a_season_is_the_first_four_harmonics_of_one_of_the_periods() -> None:
    length = 3360  # a multiple of every period, so that each harmonic falls on one frequency
    for seed in range(12):
        power = np.abs(np.fft.rfft(season(np.random.default_rng(seed), length))) ** 2
        lines = set(np.flatnonzero(power > 1e-18 * power.sum()).tolist())
        harmonics = [{h * length // period for h in (1, 2, 3, 4)} for period in PERIODS]
        assert any(lines <= h for h in harmonics)


def test_smooth_noise_has_variance_1_and_is_smooth() -> None:
    rows = np.stack([smooth_noise(np.random.default_rng(s), 64) for s in range(400)])
    assert rows.var() == pytest.approx(1.0, rel=0.15)  # 400 nearly independent levels: 3 · √(2/400)
    assert np.mean(rows[:, 1:] * rows[:, :-1]) > 0.95  # the narrowest width, 8, has exp(-1/256)


def test_channels_of_a_series_are_correlated_and_differ() -> None:
    rows = np.concatenate([np.corrcoef(made_series(np.random.default_rng(s), 200, 3).T) for s in range(20)])
    off = np.abs(rows[rows < 1 - 1e-9])
    assert 0.2 < off.mean() < 0.8
    assert off.max() < 0.999


def test_a_field_has_variance_1_around_a_level_of_its_own_in_every_channel() -> None:
    fields = np.stack([made_field(np.random.default_rng(s), (2, 12, 16), (1, 2)) for s in range(300)])
    levels = fields.mean(axis=(2, 3))
    assert fields.var() == pytest.approx(1 + LEVEL**2, rel=0.1)
    assert np.corrcoef(levels.T)[0, 1] == pytest.approx(0.0, abs=0.2)  # 3 / √300


def test_neighbours_of_a_smooth_field_resemble_each_other_and_channels_do_not() -> None:
    fields = np.stack([made_field(np.random.default_rng(s), (2, 16, 16), (1, 2)) for s in range(200)])
    fields = fields - fields.mean(axis=(2, 3), keepdims=True)
    near = np.mean(fields * np.roll(fields, 1, axis=3)) / fields.var()
    assert near > 0.4
    assert abs(np.mean(fields[:, 0] * fields[:, 1])) < 0.1


# ---------------------------------------------------------------- keys

STATE = "(float[b, 3, 6] x) => (float[b, 3, 6] y) { p = MatMul(x, A)  y = Tanh(p) }"
REPLACED = '[[feedback]]\noutput = "y"\ninput = "x"\nmode = "replace"\n'


def test_the_same_request_makes_the_same_contexts_and_another_seed_others(tmp_path: Path) -> None:
    weights = {"A": values(6, 6)}
    first, again, other = (made(tmp_path, STATE, weights, spec(REPLACED), seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.arrays["x"], again.arrays["x"])
    assert not np.isin(first.arrays["x"], other.arrays["x"]).any()


def test_a_context_does_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    weights = {"A": values(6, 6)}
    few, many = (made(tmp_path, STATE, weights, spec(REPLACED), n=n) for n in (5, 21))
    assert np.array_equal(few.arrays["x"], many.arrays["x"][:5])


def test_an_input_does_not_depend_on_the_other_inputs(tmp_path: Path) -> None:
    alone = made(tmp_path, STATE, {"A": values(6, 6)}, spec(REPLACED), n=3)
    graph = "(float[b, 6] u, float[b, 3, 6] x) => (float[b, 3, 6] y) { p = MatMul(x, A)  y = Tanh(p)  z = Abs(u) }"
    both = made(tmp_path, graph, {"A": values(6, 6)}, spec(REPLACED + '[[static]]\ninput = "u"\n'), n=3)
    assert np.array_equal(alone.arrays["x"], both.arrays["x"])


# ---------------------------------------------------------------- units

NORMALISED = """(float[b, 2, 8, 8] x) => (float[b, 2, 8, 8] y) {
  c = Sub(x, mean)  z = Div(c, deviation)  h = Conv<pads = [1, 1, 1, 1]>(z, W)  t = Tanh(h)
  s = Mul(t, deviation)  y = Add(s, mean) }"""


def test_a_state_has_the_mean_and_deviation_by_which_the_graph_normalises_it(tmp_path: Path) -> None:
    weights = {
        "mean": np.array([280.0, -3.0], np.float32).reshape(1, 2, 1, 1),
        "deviation": np.array([8.0, 0.5], np.float32).reshape(1, 2, 1, 1),
        "W": values(2, 2, 3, 3, scale=0.3),
    }
    x = made(tmp_path, NORMALISED, weights, spec(REPLACED, steps=1), n=300).arrays["x"].astype(np.float64)
    x = x[np.arange(300) % 4 != 3]  # every fourth is the model's own rollout
    assert x.mean(axis=(0, 2, 3)) == pytest.approx([280.0, -3.0], abs=8 * 0.5 * 3 / 15)  # levels: ½ σ / √225
    assert x.std(axis=(0, 2, 3)) == pytest.approx(np.sqrt(1.25) * np.array([8.0, 0.5]), rel=0.1)


def test_a_scale_that_the_user_states_takes_precedence(tmp_path: Path) -> None:
    weights = {"mean": np.float32([0.0]), "deviation": np.float32([1.0]), "W": values(2, 2, 3, 3, scale=0.3)}
    scale = InputScale("x", 50.0, 4.0)
    found = made(tmp_path, NORMALISED, weights, spec(REPLACED, steps=1), n=100, scales=(scale,))
    x = found.arrays["x"][np.arange(100) % 4 != 3]
    assert x.mean() == pytest.approx(50.0, abs=1.0)
    assert x.std() == pytest.approx(4 * np.sqrt(1.25), rel=0.1)
    assert "mean 50, deviation 4" in found.notes[0]


def test_a_scale_for_no_input_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no float input 'z'"):
        made(tmp_path, STATE, {"A": values(6, 6)}, spec(REPLACED), scales=(InputScale("z", 0.0, 1.0),))


def test_unknown_units_are_said_to_be_unit_variance(tmp_path: Path) -> None:
    note = made(tmp_path, STATE, {"A": values(6, 6)}, spec(REPLACED)).notes[0]
    assert note == "made 16 contexts (seed 0): x: fields, unit variance"


# ---------------------------------------------------------------- rollouts


def test_a_history_of_two_states_is_two_steps_of_the_model_itself(tmp_path: Path) -> None:
    a, b = values(6, 6, seed=1, scale=0.3), values(6, 6, seed=2, scale=0.3)
    graph = """(float[b, 2, 6] x) => (float[b, 6] y) {
      old = Gather<axis = 1>(x, zero)  new = Gather<axis = 1>(x, one)
      p = MatMul(old, A)  q = MatMul(new, B)  s = Add(p, q)  y = Tanh(s) }"""
    tables = '[[feedback]]\noutput = "y"\ninput = "x"\nmode = "shift"\naxis = 1\nexpand = 1\n'
    weights = {"A": a, "B": b, "zero": np.int64(0), "one": np.int64(1)}
    rollout = spec(tables)
    x = made(tmp_path, graph, weights, rollout, n=4).arrays["x"]
    for i in range(4):
        start = draw(recipe_of(tmp_path, "x", (2, 6), rollout), 0, i, 1)
        assert np.array_equal(start[0], start[1])
        first = np.tanh(start[0] @ a + start[1] @ b)
        second = np.tanh(start[1] @ a + first @ b)
        assert x[i] == pytest.approx(np.stack([first, second]), abs=1e-5)


def test_a_hidden_state_is_that_of_a_rollout_from_zeros_under_made_forcings(tmp_path: Path) -> None:
    w, u = values(5, 5, seed=1, scale=0.4), values(3, 5, seed=2)
    graph = """(float[b, 3] u, float[b, 5] h) => (float[b, 5] y, float[b, 5] k) {
      p = MatMul(h, W)  q = MatMul(u, U)  s = Add(p, q)  k = Tanh(s)  y = Neg(k) }"""
    tables = '[[feedback]]\noutput = "k"\ninput = "h"\nmode = "replace"\n[[forcing]]\ninput = "u"\n'
    rollout = spec(tables, steps=4)
    found = made(tmp_path, graph, {"W": w, "U": u}, rollout, n=3)
    for i in range(3):
        forcing = draw(recipe_of(tmp_path, "u", (3,), rollout), 0, i, WARM_UP + 4)
        state = np.zeros(5)
        for step in range(WARM_UP):
            state = np.tanh(state @ w + forcing[step] @ u)
        assert found.arrays["h"][i] == pytest.approx(state, abs=1e-5)
        assert np.array_equal(found.arrays["u"][i], forcing[WARM_UP:])


def test_contexts_whose_rollout_explodes_are_drawn_again(tmp_path: Path) -> None:
    square = "(float[b, 4] x) => (float[b, 4] y) { y = Mul(x, x)  z = MatMul(x, A) }"
    x = (
        made(tmp_path, square, {"A": values(4, 4)}, spec(REPLACED, steps=6), n=24)
        .arrays["x"]
        .astype(np.float64)
    )
    assert (np.abs(x) ** (2**6)).max() < 1e3 * np.maximum(np.abs(x), x**2).max()


def test_a_rollout_that_explodes_from_everywhere_is_refused(tmp_path: Path) -> None:
    graph = "(float[b, 4] x) => (float[b, 4] y) { y = MatMul(x, A) }"
    with pytest.raises(InputError, match="do not stay finite and bounded"):
        made(tmp_path, graph, {"A": 4 * np.eye(4, dtype=np.float32)}, spec_of(8))


def test_the_logarithm_of_an_input_is_finite(tmp_path: Path) -> None:
    graph = "(float[b, 4] x) => (float[b, 4] y) { l = Log(x)  y = MatMul(l, A) }"
    x = made(tmp_path, graph, {"A": values(4, 4)}, spec('[[static]]\ninput = "x"\n', steps=1)).arrays["x"]
    assert (x > 0).all()


def test_the_windows_of_a_forcing_slide_by_as_many_values_as_a_step_appends(tmp_path: Path) -> None:
    graph = """(float[b, 12, 2] x) => (float[b, 3] y) {
      f = Flatten(x)  y = MatMul(f, A) }"""
    tables = """[[feedback]]
output = "y"
input = "x"
mode = "shift"
axis = 1
into = { axis = 2, index = 0 }
[[forcing]]
input = "x"
"""
    x = made(tmp_path, graph, {"A": values(24, 3, scale=0.1)}, spec(tables)).arrays["x"]
    assert x.shape == (16, 4, 12, 2)
    assert np.array_equal(x[:, :-1, 3:, 1], x[:, 1:, :-3, 1])


# ---------------------------------------------------------------- what readers allow


def test_integers_stay_below_the_size_of_the_table_that_they_index(tmp_path: Path) -> None:
    graph = """(int64[b, 5] i, float[b, 4] x) => (float[b, 4] y) {
      e = Gather(T, i)  m = ReduceMean<axes = [1], keepdims = 0>(e)  s = Add(x, m)  y = Tanh(s) }"""
    tables = REPLACED + '[[static]]\ninput = "i"\n'
    i = made(tmp_path, graph, {"T": values(7, 4)}, spec(tables), n=40).arrays["i"]
    assert i.dtype == np.int64
    assert set(i.ravel().tolist()) == set(range(7))


def test_an_integer_that_is_compared_with_a_constant_is_that_constant(tmp_path: Path) -> None:
    graph = """(int64 rate, float[b, 4] x) => (float[b, 4] y) {
      is = Equal(rate, wide)
      y = If(is)<
        then_branch = t () => (float[b, 4] ty) { tp = MatMul(x, A)  ty = Tanh(tp) },
        else_branch = e () => (float[b, 4] ey) { ey = Neg(x) }> }"""
    tables = REPLACED + '[[static]]\ninput = "rate"\nshared = true\n'
    weights = {"A": values(4, 4), "wide": np.int64(16000)}
    rate = made(tmp_path, graph, weights, spec(tables)).arrays["rate"]
    assert rate.tolist() == [16000] * 16


def test_a_clipped_input_stays_within_its_bounds(tmp_path: Path) -> None:
    graph = "(float[b, 4] x) => (float[b, 4] y) { c = Clip(x, low, high)  y = MatMul(c, A) }"
    weights = {"A": values(4, 4), "low": np.float32(10), "high": np.float32(30)}
    x = made(tmp_path, graph, weights, spec('[[static]]\ninput = "x"\n', steps=1), n=100).arrays["x"]
    assert x.min() >= 10
    assert x.max() <= 30
    assert x.mean() == pytest.approx(20, abs=1.5)


def test_a_filled_mask_starts_with_its_fill_value(tmp_path: Path) -> None:
    graph = """(float[b, n] x, bool[b, n] m) => (float[b, 2] y) {
      z = Where(m, zero, x)  l = Slice(z, minus, end, one)  y = MatMul(l, A) }"""
    weights = {
        "A": values(2, 2, scale=0.3),
        "zero": np.float32(0),
        "minus": np.int64([-2]),
        "end": np.int64([1 << 40]),
        "one": np.int64([1]),
    }
    tables = """[[feedback]]
output = "y"
input = "x"
mode = "grow"
axis = 1
[[fill]]
input = "m"
value = false
axis = 1
length = 2
"""
    found = made(tmp_path, graph, weights, spec(tables), n=4)
    assert found.arrays["x"].shape == found.arrays["m"].shape == (4, 64)
    assert not found.arrays["m"].any()


def test_an_open_size_is_the_first_that_runs(tmp_path: Path) -> None:
    graph = """(float[b, n, 2] x) => (float[b, 3] y) { f = Reshape(x, to)  y = MatMul(f, A) }"""
    weights = {"A": values(20, 3), "to": np.int64([0, 20])}
    found = made(tmp_path, graph, weights, spec('[[static]]\ninput = "x"\n', steps=1), n=2)
    assert found.arrays["x"].shape == (2, 10, 2)
    assert "n = 10 (the first size that runs)" in found.notes[0]


def test_sizes_that_never_run_are_asked_for(tmp_path: Path) -> None:
    graph = """(float[b, n, 2] x) => (float[b, 3] y) { f = Reshape(x, to)  y = MatMul(f, A) }"""
    weights = {"A": values(74, 3), "to": np.int64([0, 74])}
    with pytest.raises(InputError, match="no size that was tried for n runs"):
        made(tmp_path, graph, weights, spec('[[static]]\ninput = "x"\n', steps=1), n=2)
