"""Tables as people have them: which columns are series, what is missing, how numbers and dates are written."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tqs_onnx.rollout.contexts import table as tables
from tqs_onnx.rollout.contexts.table import DataTable, read_table
from tqs_passes.errors import InputError


def table(
    folder: Path, text: str, *, missing: tuple[float, ...] = (), columns: list[str] | None = None
) -> DataTable:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path, columns, missing)


def seconds_of(*moments: str) -> list[float]:
    return [float(np.datetime64(m, "s").astype(np.int64)) for m in moments]


@pytest.mark.parametrize("mark", ["?", "-", "NA", "", "n/a", "NaN", "null"])
def test_a_mark_of_a_missing_value_in_the_first_column_does_not_make_it_dates(
    tmp_path: Path, mark: str
) -> None:
    read = table(tmp_path, f"load,temp\n100.1,7.9\n{mark},7.8\n99.5,7.7\n")
    assert read.columns == ("load", "temp")
    np.testing.assert_array_equal(read.values, [[100.1, 7.9], [100.1, 7.8], [99.5, 7.7]])
    assert "1 missing cells take the value before them" in read.note


def test_a_number_marks_missing_values_on_request_only(tmp_path: Path) -> None:
    text = "a\n1\n-9999\n3\n"
    np.testing.assert_array_equal(table(tmp_path, text).values[:, 0], [1, -9999, 3])
    np.testing.assert_array_equal(table(tmp_path, text, missing=(-9999.0,)).values[:, 0], [1, 1, 3])


def test_a_word_in_a_column_of_numbers_is_refused_and_not_taken_for_a_date(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'load' contains 'broken' in line 3"):
        table(tmp_path, "load,temp\n100.1,7.9\nbroken,7.8\n")


@pytest.mark.parametrize(
    "text",
    [
        "load\n100,1\n99,25\n",
        "load;temp\n100,1;7\n99,25;8\n",
        "100,1;7,5\n99,25;8,5\n",
        'load,temp\n"100,1",7\n"99,25",8\n',
        "load\ttemp\n100,1\t7\n99,25\t8\n",
    ],
)
def test_decimal_commas_are_read(tmp_path: Path, text: str) -> None:
    read = table(tmp_path, text)
    np.testing.assert_array_equal(read.values[:, 0], [100.1, 99.25])
    assert "decimal commas" in read.note


def test_a_column_with_points_and_commas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'a' mixes decimal points and commas"):
        table(tmp_path, "a;b\n1,250;1\n1.5;2\n")


@pytest.mark.parametrize(
    "text",
    [
        'a,b\n"900",1\n"920",2\n"1,000",3\n"1,020",4\n',
        'a,b\n"1,000",1\n"-2,500,000",2\n',
        'a,b\n"1,000,000",1\n"2,500,000",2\n',
        "a;b\n900;1\n920;2\n1,000;3\n",
        "a\n900\n920\n1,000\n",
    ],
)
def test_a_comma_that_may_be_between_thousands_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        InputError, match=r"'a' contains '1,0\d\d.*' in line \d, whose comma may be decimal or betw"
    ):
        table(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a,b\n"100,125",1\n"99,5",2\n', [100.125, 99.5]),
        ('a,b\n"0,512",1\n"1,024",2\n', [0.512, 1.024]),  # no thousands are written 0,512
        ("a;b\n1,250;1\n2,375;2\n", [1.25, 2.375]),
        ("a;b\n1,250;1\n2000;2\n", [1.25, 2000]),  # nor are the others grouped here
    ],
)
def test_a_comma_that_is_surely_decimal_is_read(tmp_path: Path, text: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(table(tmp_path, text).values[:, 0], expected)


def test_a_name_of_digits_and_underscores_is_no_number(tmp_path: Path) -> None:
    read = table(tmp_path, "station,load\n12_3,1\n12_4,2\n")
    assert read.columns == ("load",)
    assert "'station' (text)" in read.note
    assert table(tmp_path, "1_1,1_2\n5,7\n6,8\n").columns == ("1_1", "1_2")


@pytest.mark.parametrize(
    ("first", "moments"),
    [
        (["2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"]),
        (["2020-01-01 00:10:00", "2020-01-01 00:20:00"], ["2020-01-01T00:10", "2020-01-01T00:20"]),
        (["2020-01-01T00:10:00.5Z", "2020-01-01T00:20:00.5Z"], ["2020-01-01T00:10", "2020-01-01T00:20"]),
        (["1990/1/1 0:00", "1990/1/2 0:00"], ["1990-01-01", "1990-01-02"]),
        (["31.12.2019 23:00", "01.01.2020 00:00"], ["2019-12-31T23", "2020-01-01"]),
        (["31/12/2019", "01/01/2020"], ["2019-12-31", "2020-01-01"]),
        (["12/31/2019", "1/1/2020"], ["2019-12-31", "2020-01-01"]),
        (["31-Dec-2019", "1-Jan-2020"], ["2019-12-31", "2020-01-01"]),
        (["20191231", "20200101"], ["2019-12-31", "2020-01-01"]),
        (["2019123123", "2020010100"], ["2019-12-31T23", "2020-01-01"]),
        (["1577833200", "1577836800"], ["2019-12-31T23", "2020-01-01"]),
        (["1577833200000", "1577836800000"], ["2019-12-31T23", "2020-01-01"]),
    ],
)
def test_dates_are_the_time_axis_and_no_series(tmp_path: Path, first: list[str], moments: list[str]) -> None:
    rows = "".join(f"{f},{i}.5\n" for i, f in enumerate(first))
    read = table(tmp_path, "when,load\n" + rows)
    assert read.columns == ("load",)
    assert read.seconds is not None
    assert read.seconds.tolist() == seconds_of(*moments)


def test_a_date_whose_day_and_month_are_not_sure_gives_no_times(tmp_path: Path) -> None:
    read = table(tmp_path, "d,a\n01/02/2020,1\n02/03/2020,2\n")
    assert (read.columns, read.seconds) == (("a",), None)


@pytest.mark.parametrize(
    ("text", "columns", "reason"),
    [
        (",a\n0,1.5\n1,2.5\n2,3.5\n", ("a",), "'' (an index of rows)"),
        ("Unnamed: 0,a\n5,1.5\n7,2.5\n", ("a",), "'Unnamed: 0' (an index of rows)"),
        ("0,1.5\n1,2.5\n2,3.5\n", ("1",), "'0' (an index of rows)"),
        ("station,a\nDE,1\nDE,2\n", ("a",), "'station' (text)"),
        ("a,b\n1,\n2,\n", ("a",), "'b' (no values)"),
        ("a,time\n1.5,0\n2.5,60\n", ("a",), "'time' (times)"),
        ("x,a,date\n1.5,2,2020-01-01\n2.5,3,2020-01-02\n", ("x", "a"), "'date' (dates)"),
    ],
)
def test_the_note_says_what_is_not_used_and_why(
    tmp_path: Path, text: str, columns: tuple[str, ...], reason: str
) -> None:
    read = table(tmp_path, text)
    assert read.columns == columns
    assert f"t.csv: columns {', '.join(map(repr, columns))}; not used: {reason}" in read.note


@pytest.mark.parametrize(
    "text", ["n,a\n1,2\n2,3\n3,4\n", "energy,a\n100000,2\n100500,3\n", "a,b\n20190101.5,1\n20190102.5,2\n"]
)
def test_named_numbers_that_rise_are_series(tmp_path: Path, text: str) -> None:
    assert len(table(tmp_path, text).columns) == 2


def test_an_index_may_be_asked_for_by_name(tmp_path: Path) -> None:
    read = table(tmp_path, "index,a\n0,5\n1,6\n", columns=["a", "index"])
    np.testing.assert_array_equal(read.values, [[5, 0], [6, 1]])


def test_a_column_without_values_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'b' has no values"):
        table(tmp_path, "a,b\n1,\n3,\n", columns=["a", "b"])


def test_a_quoted_newline_belongs_to_its_cell(tmp_path: Path) -> None:
    read = table(tmp_path, 'a,"load\n[MW]",c\n1,2,3\n\n4,5,6\n')
    assert read.columns == ("a", "load\n[MW]", "c")
    np.testing.assert_array_equal(read.values, [[1, 2, 3], [4, 5, 6]])


def test_the_line_of_a_fault_counts_quoted_newlines_and_blank_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 5 has 1 cells instead of 2"):
        table(tmp_path, 'c,"a\nb"\n1,2\n\n3\n')


# What is larger than it looks


def test_a_cell_of_many_digits_costs_no_more_than_itself(tmp_path: Path) -> None:
    """Beside 30,000 rows: as a fixed-width array of text it would be 3.6 GB."""
    rows = "1.5,2\n" * 30_000
    tracemalloc.start()
    with pytest.raises(InputError, match=r"column 'a' contains '9999.* in line 30002"):
        table(tmp_path, "a,b\n" + rows + "9" * 30_000 + ",1\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_gzip_that_expands_like_no_table_is_refused_early(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(80):
            stream.write(b"0,0\n" * (1 << 18))
    tracemalloc.start()
    with pytest.raises(InputError, match="expands more than 200 times"):
        read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # 64 of 80 MiB were unpacked, a block at a time


def test_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    endless = tmp_path / "t.csv"
    endless.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="has a line of more than"):
        read_table(endless)


def test_only_the_last_table_of_few_cells_is_kept_and_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(50))
    first = table(tmp_path, text)
    monkeypatch.setattr(tables, "_parsed", None)  # nothing is parsed again
    again = table(tmp_path, text, columns=["b"])
    assert again.digest == first.digest
    assert again.values[:, 0].tolist() == first.values[:, 1].tolist()
    monkeypatch.undo()
    assert table(tmp_path, text.replace("49,", "48,")).values[-1, 0] == 48
    packed = tmp_path / "t.csv.gz"  # few bytes, many cells
    packed.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(tables, "_MOST_KEPT_CELLS", 99)
    assert read_table(packed).digest == first.digest
    assert tables._kept == {}
