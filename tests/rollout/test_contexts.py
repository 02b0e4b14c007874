import gzip

import numpy as np
import pytest
from onnx import parser

from tqs_onnx.rollout.contexts.context_set import Contexts, thin
from tqs_onnx.rollout.contexts.load import check_disjoint, load_contexts
from tqs_onnx.rollout.contexts.table import read_table
from tqs_onnx.rollout.spec.signature import ModelSignature, signature_of
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_passes.errors import InputError

STATE = """
version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[[forcing]]
input = "sun"
[trajectory]
outputs = ["y"]
"""
PORTS = "(float[b, 3] x, float[b, 1] sun) => (float[b, 3] y)"

SERIES = """
version = 1
[rollout]
steps = 2
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "shift"
axis = 1
[trajectory]
outputs = ["y"]
time_axis = 1
[windows]
input = "x"
layout = "series"
context = 4
horizon = 2
stride = 3
train = [0, 10]
validation = [10, 20]
test = [20, 40]
"""
WINDOW = "(float[b, n] x) => (float[b, 2] y)"


def signature(ports: str) -> ModelSignature:
    return signature_of(parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {ports} {{}}'))


def arrays(n: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.random((n, 3), np.float32), "sun": rng.random((n, 2, 1), np.float32)}


def stored(tmp_path, spec=STATE, ports=PORTS, *, limit=None, **content) -> Contexts:
    path = tmp_path / "contexts.npz"
    np.savez(path, **content)
    return load_contexts(path, parse_spec(spec), signature(ports), limit=limit)


def table_file(tmp_path, n: int = 40, name: str = "t.csv"):
    rows = [f"2020-01-01 {i},{i}.5,{100 + i}" for i in range(n)]
    path = tmp_path / name
    path.write_text("\n".join(["date,a,b", *rows]) + "\n")
    return path


def windows(path, split="test", *, spec=SERIES, ports=WINDOW, limit=None) -> Contexts:
    return load_contexts(path, parse_spec(spec), signature(ports), split=split, limit=limit)


# Arrays


def test_arrays_come_back_as_stored(tmp_path):
    content = arrays()
    contexts = stored(tmp_path, **content)
    assert contexts.n_contexts == 4
    for name, array in content.items():
        np.testing.assert_array_equal(contexts.arrays[name], array)


def test_truth_and_series_are_read(tmp_path):
    truth = np.ones((4, 2, 3))
    contexts = stored(tmp_path, **arrays(), **{"truth/y": truth}, series=np.array(["a", "b", "a", "b"]))
    np.testing.assert_array_equal(contexts.truth["y"], truth)
    assert contexts.series == ("a", "b", "a", "b")


def test_a_folder_of_arrays_is_read(tmp_path):
    content = arrays()
    (tmp_path / "c" / "truth").mkdir(parents=True)
    for name, array in content.items():
        np.save(tmp_path / "c" / f"{name}.npy", array)
    np.save(tmp_path / "c" / "truth" / "y.npy", np.ones((4, 2, 3)))
    contexts = load_contexts(tmp_path / "c", parse_spec(STATE), signature(PORTS))
    np.testing.assert_array_equal(contexts.arrays["x"], content["x"])
    assert list(contexts.truth) == ["y"]


def test_doubles_become_the_type_of_the_input(tmp_path):
    content = arrays()
    contexts = stored(tmp_path, x=content["x"].astype(np.float64), sun=content["sun"])
    assert contexts.arrays["x"].dtype == np.float32


def test_a_limit_thins_evenly(tmp_path):
    content = arrays(10)
    contexts = stored(tmp_path, limit=3, **content)
    np.testing.assert_array_equal(contexts.arrays["x"], content["x"][[1, 5, 8]])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"x": np.ones((4, 3), np.int64)}, "input 'x' expects float32, got int64"),
        ({"x": np.ones((4, 3), bool)}, "input 'x' expects float32, got bool"),
        ({"x": np.ones((4, 5), np.float32)}, "input 'x' expects [context, 3], got [4, 5]"),
        ({"x": np.ones((4, 1, 3), np.float32)}, "input 'x' expects [context, 3], got [4, 1, 3]"),
        ({"sun": np.ones((4, 1), np.float32)}, "input 'sun' expects [context, step, 1], got [4, 1]"),
        ({"sun": np.ones((4, 1, 1), np.float32)}, "forcing 'sun' has 1 steps, but the rollout has 2"),
        ({"sun": np.ones((3, 2, 1), np.float32)}, "differ in the number of contexts: 'x' 4, 'sun' 3"),
        ({"y": np.ones(4)}, "array 'y' is not an input of the model"),
        ({"son": np.ones(4)}, "array 'son' is not an input of the model. Did you mean 'sun'?"),
        ({"truth/z": np.ones((4, 2))}, "truth/z is not an output of the trajectory"),
        ({"truth/y": np.ones(4)}, "truth/y must have numbers and axes [context, time, ...]"),
        ({"truth/y": np.full((4, 2, 3), np.nan)}, "truth/y holds NaN in context 0 at position [0, 0]"),
        ({"series": np.array(["a"])}, "differ in the number of contexts"),
        ({"x": np.full((4, 3), 1e300)}, "input 'x' holds an infinity in context 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, expected):
    with pytest.raises(InputError) as caught:
        stored(tmp_path, **(arrays() | change))
    assert expected in str(caught.value)


def test_the_place_of_a_nan_is_named(tmp_path):
    content = arrays()
    content["x"][2, 1] = np.nan
    with pytest.raises(InputError, match=r"input 'x' holds NaN in context 2 at position \[1\]"):
        stored(tmp_path, **content)


def test_a_missing_array_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no array for input 'sun' float32 \[b, 1\]"):
        stored(tmp_path, x=arrays()["x"])


def test_no_context_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="contains no contexts"):
        stored(tmp_path, **arrays(0))


def test_integers_that_do_not_fit_are_refused(tmp_path):
    spec = STATE.replace('[[forcing]]\ninput = "sun"\n', "")
    with pytest.raises(InputError, match="integers that do not fit int8"):
        stored(tmp_path, spec, "(int8[b, 1] x) => (int8[b, 1] y)", x=np.array([[300]]))


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, x=np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="pickled"):
        load_contexts(path, parse_spec(STATE), signature(PORTS))


def test_a_damaged_file_is_an_input_error(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as NumPy arrays"):
        load_contexts(path, parse_spec(STATE), signature(PORTS))


def test_a_single_array_is_no_archive(tmp_path):
    path = tmp_path / "c.npz"
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(InputError, match="cannot be read as NumPy arrays"):
        load_contexts(path, parse_spec(STATE), signature(PORTS))


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_contexts(tmp_path / "none.npz", parse_spec(STATE), signature(PORTS))


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is not a contexts file"):
        load_contexts(path, parse_spec(STATE), signature(PORTS))


def test_without_a_batch_axis_arrays_have_the_shape_of_the_input(tmp_path):
    spec = STATE.replace("batch_axis = 0\n", "")
    x, sun = np.ones((4, 1, 3), np.float32), np.ones((4, 2, 1, 1), np.float32)
    contexts = stored(tmp_path, spec, "(float[1, 3] x, float[1, 1] sun) => (float[1, 3] y)", x=x, sun=sun)
    assert contexts.arrays["x"].shape == (4, 1, 3)


# Thinning


def test_thinning_keeps_every_group():
    groups = ["a", "b", "c"] * 7
    kept = thin(21, 7, groups)
    assert len(kept) == 7
    assert sorted(groups[i] for i in kept) == ["a", "a", "a", "b", "b", "c", "c"]


def test_thinning_below_the_number_of_groups_takes_one_of_each():
    groups = ["a", "b", "c", "d"] * 5
    assert len({groups[i] for i in thin(20, 2, groups)}) == 2


def test_a_limit_of_none_keeps_all():
    assert thin(3, None) == [0, 1, 2]


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        thin(3, 0)


# Tables


def test_a_date_column_is_left_out(tmp_path):
    table = read_table(table_file(tmp_path))
    assert table.columns == ("a", "b")
    np.testing.assert_array_equal(table.values[:2], [[0.5, 100], [1.5, 101]])


def test_a_table_without_a_header_has_numbered_columns(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("1,2\n3,4\n")
    table = read_table(path)
    assert table.columns == ("0", "1")
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4]])


@pytest.mark.parametrize("separator", [";", "\t", "  "])
def test_other_separators_are_recognised(tmp_path, separator):
    path = tmp_path / "t.txt"
    path.write_text(f"a{separator}b\n1{separator}2\n")
    assert read_table(path).columns == ("a", "b")


def test_a_gzipped_table_is_the_same_table(tmp_path):
    plain = table_file(tmp_path)
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_table(packed).digest == read_table(plain).digest


def test_bytes_that_are_no_utf8_are_replaced(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"date,W/m\xb2\nx,1\n")
    assert read_table(path).columns == ("W/m�",)


def test_missing_cells_are_filled_from_the_past_then_from_the_start(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n,1\n2,-9999\n,NaN\nna,4\n5,6\n")
    table = read_table(path, missing=[-9999.0])
    np.testing.assert_array_equal(table.values, [[2, 1], [2, 1], [2, 1], [2, 4], [5, 6]])


def test_a_missing_first_column_is_not_a_date(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n,1\n2,3\n")
    assert read_table(path).columns == ("a", "b")


def test_columns_are_chosen_in_the_order_asked_for(tmp_path):
    table = read_table(table_file(tmp_path), ["b", "a"])
    np.testing.assert_array_equal(table.values[0], [100, 0.5])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("a,b\n", "contains no rows"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells instead of 2"),
        ("a,b\n1,2\n3,x\n", "column 'b' contains 'x' in line 3"),
        ("a,b\n1,2\n3,inf\n", "column 'b' contains 'inf' in line 3"),
        ("a,b\n,\n,\n", "no column holds a series of numbers"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, expected):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert expected in str(caught.value)


def test_an_unknown_column_is_named_with_a_guess(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("temp,rain\n1,2\n")
    with pytest.raises(InputError, match=r"no column 'tmp'\. Did you mean 'temp'"):
        read_table(path, ["tmp"])


def test_a_damaged_gzip_is_an_input_error(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n")[:-6])
    with pytest.raises(InputError, match="cannot be read"):
        read_table(path)


# Windows


def test_test_windows_lie_wholly_in_their_split(tmp_path):
    contexts = windows(table_file(tmp_path))
    assert contexts.rows is not None
    # Starts 20, 23, 26, 29, 32: 35 + 4 + 2 would end past row 40. Two series each.
    assert sorted({int(s) for s in contexts.rows[:, 0]}) == [20, 23, 26, 29, 32]
    assert contexts.n_contexts == 10


def test_windows_hold_the_values_of_the_table(tmp_path):
    contexts = windows(table_file(tmp_path))
    assert contexts.series is not None
    index = contexts.series.index("b")
    np.testing.assert_array_equal(contexts.arrays["x"][index], np.float32([120, 121, 122, 123]))
    np.testing.assert_array_equal(contexts.truth["y"][index], [124, 125])


def test_validation_windows_need_their_context_only(tmp_path):
    contexts = windows(table_file(tmp_path), "validation")
    assert contexts.rows is not None
    np.testing.assert_array_equal(np.unique(contexts.rows, axis=0), [[10, 14], [13, 17], [16, 20]])
    assert contexts.truth == {}


def test_validation_windows_get_truth_when_all_of_it_is_inside(tmp_path):
    contexts = windows(table_file(tmp_path), "validation", spec=SERIES.replace("stride = 3", "stride = 4"))
    assert contexts.rows is not None
    np.testing.assert_array_equal(np.unique(contexts.rows, axis=0), [[10, 16], [14, 20]])
    assert contexts.truth["y"].shape == (4, 2)


def test_scales_are_of_the_training_rows(tmp_path):
    scales = windows(table_file(tmp_path)).scales
    assert scales is not None
    # The training rows hold 0 … 9 plus a constant: their population variance is (10² − 1) / 12.
    assert scales == pytest.approx({"a": (99 / 12) ** 0.5, "b": (99 / 12) ** 0.5}, rel=1e-12)


def test_fractions_are_parts_of_the_table(tmp_path):
    spec = SERIES.replace("[20, 40]", "[0.5, 1.0]").replace("[10, 20]", "[0.25, 0.5]")
    by_fraction = windows(table_file(tmp_path), spec=spec)
    by_row = windows(table_file(tmp_path))
    assert by_fraction.rows is not None
    np.testing.assert_array_equal(by_fraction.rows, by_row.rows)


def test_a_table_of_its_own_overrides_splits_and_stride(tmp_path):
    own = '[[windows.table]]\nmatch = "ot*"\nstride = 1\ntest = [0, 7]\n'
    contexts = windows(table_file(tmp_path, name="other.csv"), spec=SERIES + own)
    assert contexts.rows is not None
    np.testing.assert_array_equal(np.unique(contexts.rows[:, 0]), [0, 1])


def test_a_table_of_another_name_keeps_the_general_splits(tmp_path):
    own = '[[windows.table]]\nmatch = "ot*"\ntest = [0, 7]\n'
    assert windows(table_file(tmp_path), spec=SERIES + own).n_contexts == 10


def test_a_limit_keeps_every_series(tmp_path):
    contexts = windows(table_file(tmp_path), limit=4)
    assert contexts.series is not None
    assert sorted(contexts.series) == ["a", "a", "b", "b"]


def test_a_table_layout_keeps_the_columns_together(tmp_path):
    spec = SERIES.replace('"series"', '"table"')
    contexts = windows(table_file(tmp_path), spec=spec, ports="(float[b, 4, 2] x) => (float[b, 2, 2] y)")
    np.testing.assert_array_equal(contexts.arrays["x"][0, 0], np.float32([20.5, 120]))
    assert contexts.truth["y"].shape == (5, 2, 2)
    assert contexts.columns == ("a", "b")


def test_a_series_gets_the_axes_of_one_of_the_input_and_the_output(tmp_path):
    contexts = windows(table_file(tmp_path), ports="(float[b, 1, n] x) => (float[b, 2, 1] y)")
    assert contexts.arrays["x"].shape == (10, 1, 4)
    assert contexts.truth["y"].shape == (10, 2, 1)


def test_masks_start_full_of_their_constant(tmp_path):
    spec = SERIES.replace("[traj", '[[fill]]\ninput = "m"\nvalue = true\naxis = 1\nlength = 2\n[traj')
    contexts = windows(
        table_file(tmp_path), spec=spec, ports="(float[b, n] x, bool[b, n] m) => (float[b, 2] y)"
    )
    assert contexts.arrays["m"].shape == (10, 4)
    assert contexts.arrays["m"].all()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[20, 40]", "[20, 25]", "the test rows 20–24 are too few: one window needs 6"),
        ("[20, 40]", "[20, 41]", "[20, 41) does not fit a table of 40 rows"),
        ("[20, 40]", "[30, 20]", "[30, 20) does not fit"),
        ("[20, 40]", "[0.5, 20]", "fractions outside 0 to 1"),
        ("test = [20, 40]\n", "", "has no test rows for this table"),
        ("stride = 3", 'stride = 3\ncolumns = ["c"]', "has no column 'c'"),
        ('layout = "series"', 'layout = "table"', "windows of [4, 2] do not fit input 'x'"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(tmp_path, old, new, expected):
    with pytest.raises(InputError) as caught:
        windows(table_file(tmp_path), spec=SERIES.replace(old, new))
    assert expected in str(caught.value)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown split 'training'"):
        windows(table_file(tmp_path), "training")


def test_a_table_needs_windows(tmp_path):
    with pytest.raises(InputError, match=r"needs a \[windows\] section"):
        windows(table_file(tmp_path), spec=SERIES[: SERIES.index("[windows]")])


def test_an_input_that_a_table_cannot_give_is_named(tmp_path):
    spec = SERIES.replace("[traj", '[[static]]\ninput = "s"\n[traj')
    with pytest.raises(InputError, match="supplies no values for input 's'"):
        windows(table_file(tmp_path), spec=spec, ports="(float[b, n] x, float[b, 1] s) => (float[b, 2] y)")


def test_a_context_of_another_length_than_the_input_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"windows of \[4\] do not fit input 'x' float32 \[b, 6\]"):
        windows(table_file(tmp_path), ports="(float[b, 6] x) => (float[b, 2] y)")


# Overlap


def test_splits_of_one_table_are_disjoint(tmp_path):
    path = table_file(tmp_path)
    check_disjoint(windows(path, "validation"), windows(path, "test"))


def test_rows_in_both_are_refused(tmp_path):
    path = table_file(tmp_path)
    with pytest.raises(InputError, match="scoring rows 19–22 and evaluation rows 20–25 overlap"):
        check_disjoint(
            windows(path, "validation", spec=SERIES.replace("[10, 20]", "[10, 23]")), windows(path)
        )


def test_a_renamed_copy_of_a_table_is_the_same_table(tmp_path):
    spec = SERIES.replace("[10, 20]", "[10, 23]")
    with pytest.raises(InputError, match="overlap"):
        check_disjoint(
            windows(table_file(tmp_path), "validation", spec=spec),
            windows(table_file(tmp_path, name="copy.csv")),
        )


def test_equal_contexts_of_two_files_are_refused():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    one, other = Contexts({"x": x}, {}, source="one"), Contexts({"x": x[::-1] * 1}, {}, source="other")
    with pytest.raises(InputError, match="other: context 0 is also scoring context 3 of one"):
        check_disjoint(one, other)


def test_different_contexts_of_two_files_are_accepted():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    check_disjoint(Contexts({"x": x}, {}), Contexts({"x": x + 1}, {}))


def test_taking_contexts_takes_everything_along():
    contexts = Contexts({"x": np.arange(3)}, {"y": np.arange(3)}, ("a", "b", "c"), np.arange(6).reshape(3, 2))
    part = contexts.take([2, 0])
    assert part.series == ("c", "a")
    np.testing.assert_array_equal(part.arrays["x"], [2, 0])
    np.testing.assert_array_equal(part.truth["y"], [2, 0])
    np.testing.assert_array_equal(part.rows, [[4, 5], [0, 1]])


def test_specs_with_windows_are_values():
    assert isinstance(parse_spec(SERIES), RolloutSpec)


def test_standardised_columns_have_mean_zero_and_deviation_one_over_the_whole_column(tmp_path):
    """The paper's A.11 takes both over the whole column, test rows included."""
    contexts = windows(
        table_file(tmp_path), spec=SERIES.replace("stride = 3", "stride = 3\nstandardise = true")
    )
    column = np.arange(40) + 0.5
    expected = (column - column.mean()) / (column.std() + 1e-8)
    assert contexts.rows is not None
    np.testing.assert_allclose(contexts.arrays["x"][0], expected[contexts.rows[0, 0] :][:4], rtol=1e-6)
    np.testing.assert_allclose(contexts.truth["y"][0], expected[contexts.rows[0, 0] + 4 :][:2], rtol=1e-12)


def test_a_constant_column_is_standardised_to_zero(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i},7\n" for i in range(40)))
    contexts = windows(path, spec=SERIES.replace("stride = 3", "stride = 3\nstandardise = true"))
    assert contexts.series is not None
    assert not contexts.arrays["x"][[s == "b" for s in contexts.series]].any()
