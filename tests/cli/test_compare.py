"""`tqs compare` and `tqs diff`: files that another tool made."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.rollouts import Case, forecaster, values, write_case
from tqs_onnx.analysis.changes import changes_of
from tqs_onnx.cli.main import main
from tqs_onnx.rollout.session import open_session
from tqs_passes.errors import InputError


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("compare"), forecaster())


def edited(case: Case, name: str, change) -> Path:
    """Write the model with one weight changed."""
    proto = onnx.load(case.model)
    for tensor in proto.graph.initializer:
        if tensor.name == "W1":
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), "W1"))
    path = case.model.with_name(name)
    onnx.save(proto, path)
    return path


def test_other_files_stand_in_one_table(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    near = edited(case, "near.onnx", lambda w: w * np.float32(1.001))
    far = edited(case, "far.onnx", lambda w: w * np.float32(1.5))
    files = [str(case.model), str(near), str(far)]
    assert main(["compare", *files, *case.arguments("--no-timing", "--json")]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert [f["file"] for f in found] == ["near.onnx", "far.onnx"]
    assert found[0]["drift"]["total"] < found[1]["drift"]["total"]
    assert found[0]["bytes"] == near.stat().st_size


def test_the_errors_of_a_file_are_those_of_its_forecasts(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    far = edited(case, "far.onnx", lambda w: w * np.float32(1.5))
    assert main(["compare", str(case.model), str(far), *case.arguments("--no-timing", "--json")]) == 0
    errors = json.loads(capsys.readouterr().out)["files"][0]["errors"]["y"]
    x, session, made = values(3, 16, seed=11), open_session(far, provider="cpu"), []
    for _ in range(4):
        x = session.run({"x": session.value(x)})["y"].numpy().copy()
        made.append(x)
    truth = values(3, 4, 16, seed=12)
    # float32 forecasts, compared in float64; another number of threads may round differently.
    assert errors["file"]["mae"] == pytest.approx(
        np.abs(np.stack(made, 1) - truth.astype(float)).mean(), rel=1e-5
    )


def test_a_file_that_is_not_there_is_one_line(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(case.model), "none.onnx", *case.arguments()]) == 2
    assert "none.onnx: no such file" in capsys.readouterr().err


def test_equal_files_differ_in_nothing(case: Case) -> None:
    found = changes_of(case.model, case.model)
    assert found.weights.rows == ()
    assert [row[0] for row in found.nodes.rows] == ["unchanged"]


def test_a_changed_weight_is_named(case: Case, tmp_path: Path) -> None:
    found = changes_of(case.model, edited(case, "other.onnx", lambda w: w + 1))
    assert [(row[0], row[2]) for row in found.weights.rows] == [("W1", "other values")]


def test_a_weight_of_an_unknown_type_is_one_line(case: Case, tmp_path: Path) -> None:
    proto = onnx.load(case.model)
    next(t for t in proto.graph.initializer if t.name == "W1").data_type = 99
    onnx.save(proto, tmp_path / "other.onnx")
    for files in ((case.model, tmp_path / "other.onnx"), (tmp_path / "other.onnx", case.model)):
        with pytest.raises(InputError, match="W1: stored data does not fit the tensor's shape and type"):
            changes_of(*files)


def test_an_emitted_file_says_how_each_weight_is_decoded(case: Case, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["quantize", str(case.model), *case.arguments("--compression", "2", "--out", str(out))]) == 0
    printed = capsys.readouterr().out
    assert "most sensitive of" in printed
    assert f"look at it: tqs report {out}" in printed
    assert main(["diff", str(case.model), str(out / "m.tqs.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = json.loads((out / "plan.json").read_text())
    stored = {a["weight"] for a in plan["assignments"] if a["form"] != "keep"}
    rows = {row["tensor"]: row["in the file"] for row in found["weights"]["rows"]}
    assert rows.keys() == stored
    assert all(text.startswith(("decoded by", "gone")) for text in rows.values())


def test_a_file_with_short_names_is_compared_under_those_of_its_source(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster(24, 96))
    run = tmp_path / "run"
    line = [
        "quantize",
        str(case.model),
        *case.arguments("--out", str(run), "--compression", "3", "--names", "short"),
    ]
    assert main(line) == 0
    found = changes_of(case.model, run / "m.tqs.onnx")
    became = {str(row[0]): str(row[2]) for row in found.weights.rows}
    assert set(became) <= {"W1", "b1", "W2", "b2", "decay"}
    assert not any("gone" in what for what in became.values())
    assert became["W1"].startswith("decoded by")
