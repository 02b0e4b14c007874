"""Bad input: one clear line on stderr, the right exit code, nothing left behind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.rollouts import REPLACE, Case, forecaster, linear, model, values, write_case
from tqs_onnx.cli.main import main


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path / "in", forecaster())


def external(case: Case) -> onnx.ModelProto:
    """Store the weights beside the model, and return the model as it is now."""
    onnx.save(
        onnx.load(case.model),
        case.model,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    return onnx.load(case.model, load_external_data=False)


def no_file(case: Case) -> None:
    case.model.unlink()


def not_onnx(case: Case) -> None:
    case.model.write_text("certainly no model")


def truncated(case: Case) -> None:
    case.model.write_bytes(case.model.read_bytes()[:3000])


def external_missing(case: Case) -> None:
    external(case)
    (case.model.parent / "w.bin").unlink()


def external_leaving(case: Case) -> None:
    proto = external(case)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    case.model.write_bytes(proto.SerializeToString())


def external_short(case: Case) -> None:
    external(case)
    (case.model.parent / "w.bin").write_bytes(b"\0" * 100)


def unknown_input(case: Case) -> None:
    case.rollout.write_text(case.rollout.read_text().replace('input = "x"', 'input = "state"'))


def unknown_key(case: Case) -> None:
    case.rollout.write_text(case.rollout.read_text().replace("steps", "stepz"))


def no_rollout(case: Case) -> None:
    case.rollout.unlink()


def wrong_shape(case: Case) -> None:
    np.savez(case.contexts, x=values(3, 5))


def wrong_dtype(case: Case) -> None:
    np.savez(case.contexts, x=np.ones((3, 16), np.int64))


def nan_in_contexts(case: Case) -> None:
    x = values(3, 16)
    x[1, 2] = np.nan
    np.savez(case.contexts, x=x)


def nan_in_evaluation(case: Case) -> None:
    np.savez(case.evaluation, x=np.full((1, 16), np.inf, np.float32))


def contexts_shared(case: Case) -> None:
    case.evaluation.write_bytes(case.contexts.read_bytes())


def no_contexts(case: Case) -> None:
    case.contexts.unlink()


def weights_with(value: float) -> Callable[[Case], None]:
    def spoil(case: Case) -> None:
        proto = onnx.load(case.model)
        tensor = next(t for t in proto.graph.initializer if t.name == "W1")
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0] = value
        tensor.CopyFrom(numpy_helper.from_array(array, "W1"))
        onnx.save(proto, case.model)

    return spoil


def no_weights(case: Case) -> None:
    onnx.save(model("(float[b, 16] x) => (float[b, 16] y) { y = Tanh(x) }", {}), case.model)


def random_operator(case: Case) -> None:
    graph = "(float[b, 16] x) => (float[b, 16] y) { n = RandomNormalLike(x) p = Add(x, n) y = MatMul(p, A) }"
    onnx.save(model(graph, {"A": values(16, 16)}), case.model)


def diverging(case: Case) -> None:
    onnx.save(linear(np.eye(16, dtype=np.float32) * 1e15), case.model)


CASES: list[tuple[Callable[[Case], None], str]] = [
    (no_file, "no such file"),
    (not_onnx, "is not an ONNX file"),
    (truncated, "is truncated"),
    (external_missing, "external data file 'w.bin' is missing"),
    (external_leaving, "is outside the model's folder"),
    (external_short, "external data file 'w.bin' is too short"),
    (unknown_input, "the model has no input 'state'"),
    (unknown_key, "rollout.stepz: unknown key"),
    (no_rollout, "cannot be read"),
    (wrong_shape, "input 'x' expects [context, 16], got [3, 5]"),
    (wrong_dtype, "input 'x' expects float32, got int64"),
    (nan_in_contexts, "input 'x' holds NaN in context 1 at position [2]"),
    (nan_in_evaluation, "holds an infinity in context 0"),
    (contexts_shared, "context 0 is also scoring context 0"),
    (no_contexts, "no such file"),
    (weights_with(np.nan), "weight 'W1' holds 1 NaN or infinite values"),
    (weights_with(np.inf), "weight 'W1' holds 1 NaN or infinite values"),
    (no_weights, "the model has no weights"),
    (random_operator, "draws random numbers"),
    (diverging, "step 3, context 0: variable 'y' is NaN or infinite"),
]


def errors(text: str) -> list[str]:
    """Return the lines of stderr that tell of an error; a traceback would be among them."""
    return [line for line in text.splitlines() if "rror" in line or "Traceback" in line]


def ids(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("spoil", "said"), CASES, ids=ids)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: Case, capsys: pytest.CaptureFixture[str], spoil: Callable[[Case], None], said: str
) -> None:
    spoil(case)
    out = case.model.parent.parent / "made" / "run"
    assert (
        main(["quantize", str(case.model), *case.arguments("--out", str(out), "--compression", "0.5")]) == 2
    )
    shown = capsys.readouterr()
    (line,) = errors(shown.err)
    assert line.startswith("tqs: error: ")
    assert said in line
    assert shown.out == ""
    assert not out.parent.exists()


def test_a_budget_below_the_smallest_file_is_exit_4_and_names_a_size_that_works(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    arguments = ["quantize", str(case.model), *case.arguments("--out", out)]
    assert main([*arguments, "--compression", "1000"]) == 4
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("tqs: error: the byte budget cannot be met: the smallest file is ")
    assert not (tmp_path / "run").exists()
    size = line.partition("file is ")[2].split()[0]
    assert main([*arguments, "--max-bytes", size]) == 0
    assert (tmp_path / "run" / "m.tqs.onnx").stat().st_size == int(size)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give one of --compression, --weight-compression, --max-bytes and --target-drift"),
        (
            ["--compression", "2", "--max-bytes", "9"],
            "give one of --compression, --weight-compression, --max-bytes and --target-drift",
        ),
        (["--compression", "-1"], "--compression must be positive"),
        (["--compression", "nan"], "'nan' is not a finite number"),
        (["--compression", "2", "--max-memory", "1e400"], "'1e400' is not a finite number"),
        (["--compression", "2", "--target-degradation", "inf"], "'inf' is not a number above 0"),
        (["--max-bytes", "0"], "--max-bytes must be positive"),
        (["--compression", "2", "--tiers", "INT9"], "unknown tier 'INT9'"),
        (["--compression", "2", "--horizons", "1,9"], "horizon 9 lies beyond the 4 steps"),
        (["--compression", "2", "--horizons", "5,1"], "must increase"),
        (["--compression", "2", "--response-bits", "9"], "must lie between 1 and 8"),
        (["--compression", "2", "--gate", "drift<1"], "gate 'drift<1' is not a valid gate"),
        (["--compression", "2", "--nonsense"], "No such option"),
        (["--compression", "much"], "is not a valid float"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    out = tmp_path / "run"
    assert main(["quantize", str(case.model), *case.arguments("--out", str(out)), *more]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("tqs: error: ")
    assert said in line
    assert not out.exists()


def test_a_gate_without_truth_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path / "in", forecaster(), truth=False)
    arguments = case.arguments(
        "--out", str(tmp_path / "run"), "--compression", "1.5", "--max-degradation", "5"
    )
    assert main(["quantize", str(case.model), *arguments]) == 2
    err = capsys.readouterr().err
    assert "the evaluation contexts hold no truth" in err
    assert "weights in" not in err
    assert not (tmp_path / "run").exists()


def test_evaluation_contexts_of_other_series_leave_no_emitted_file(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(case.contexts, x=values(2, 16, seed=1), series=np.array(["a", "b"]))
    np.savez(case.evaluation, x=values(1, 16, seed=2), series=np.array(["c"]))
    out = tmp_path / "run"
    assert (
        main(["quantize", str(case.model), *case.arguments("--out", str(out), "--compression", "1.5")]) == 2
    )
    assert "variable 'c' was not scored" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == [
        ".unfinished", "plan.json", "scores.csv", "scores.json", "sweep.sqlite"
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["score", "inspect", "allocate", "emit", "verify"])
def test_every_command_names_a_missing_model(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    gone = str(tmp_path / "gone.onnx")
    files = ["--rollout", str(case.rollout), "--contexts", str(case.contexts)]
    more = {
        "score": [*files, "--out", str(tmp_path / "run")],
        "inspect": [],
        "allocate": ["--scores", gone, "--compression", "2", "--out", str(tmp_path / "plan.json")],
        "emit": ["--plan", gone, "--out", str(tmp_path / "o.onnx")],
        "verify": ["--source", gone, "--plan", gone, "--scores", gone, *files],
    }[command]
    assert main([command, gone, *more]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("tqs: error: ")
    assert "gone.onnx: no such file" in line
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_spec_without_steps_is_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.rollout.write_text(REPLACE.format(steps=0))
    assert main(["quantize", str(case.model), *case.arguments("--out", "run", "--compression", "2")]) == 2
    assert "rollout.steps: Input should be greater than or equal to 1" in capsys.readouterr().err


def test_a_mistyped_command_names_the_one_closest_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qantize", "m.onnx"]) == 2
    assert "No such command 'qantize'. Did you mean 'quantize'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [("--plan", "is not a plan of this version"), ("--scores", "holds no scores of this version")],
)
def test_a_file_of_another_kind_is_called_what_it_is_not(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    (tmp_path / "f.json").write_text('{"version": 1}')
    command = "emit" if option == "--plan" else "allocate"
    arguments = [command, str(case.model), option, str(tmp_path / "f.json"), "--out", str(tmp_path / "o")]
    assert main([*arguments, *([] if option == "--plan" else ["--compression", "2"])]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
