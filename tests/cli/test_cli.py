"""Every command as a user types it: what is on stdout and stderr, and the exit code."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from tests.rollouts import Case, forecaster, write_case
from tqs_onnx.cli.main import cli, main
from tqs_passes.files.model import load_model
from tqs_passes.files.save import save_model
from tqs_passes.plan.plan import read_plan

COMMANDS = cli.list_commands(click.Context(cli))
KEYS = [
    *("out", "bytes_in", "bytes_out", "compression", "drift_predicted", "drift_predicted_interval"),
    *("drift_measured", "on_made_contexts", "degradation", "plan", "manifest", "drift_joint", "drift_added"),
    *("tried", "n_weights", "n_dead", "unseen", "wall_s"),
]


@dataclass(frozen=True)
class Shell:
    """A case with a finished run beside it."""

    case: Case
    run: Path
    before: bytes

    def quantize(self, out: Path, *more: str) -> list[str]:
        return ["quantize", str(self.case.model), *self.case.arguments("--out", str(out), *more)]

    def verify(self, *more: str) -> list[str]:
        plan = ["--plan", str(self.run / "plan.json"), "--scores", str(self.run / "scores.json")]
        files = [str(self.run / "m.tqs.onnx"), "--source", str(self.case.model), *plan]
        return ["verify", *files, *self.case.arguments(*more)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("cli")
    case = write_case(folder / "in", forecaster())
    shell = Shell(case, folder / "run", case.model.read_bytes())
    assert main(shell.quantize(shell.run, "--compression", "2")) == 0
    return shell


Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    assert f"Example:\n    tqs {name}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tqs, version ")


@pytest.mark.parametrize("arguments", [["nonsense"], ["inspect"], ["inspect", "--nonsense"]])
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tqs: error: ")
    assert line.endswith("--help")


def test_quantize_prints_one_json_object_with_the_keys_promised(
    shell: Shell, tmp_path: Path, capsys: Capture
) -> None:
    assert main(shell.quantize(tmp_path / "run", "--compression", "2", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS
    assert found["compression"] == found["bytes_in"] / found["bytes_out"] >= 2
    assert found["bytes_out"] == Path(found["out"]).stat().st_size
    assert list(found["degradation"]) == ["worst", "y"]
    assert (found["n_weights"], found["n_dead"]) == (5, 0)
    assert Path(found["plan"]).is_file()
    assert Path(found["manifest"]).is_file()


def test_compare_adds_a_row_per_method_and_width(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    assert main(shell.quantize(tmp_path / "run", "--compression", "2", "--compare", "--json")) == 0
    rows = json.loads(capsys.readouterr().out)["compare"]
    assert [r["bits"] for r in rows if r["method"] == "uniform"] == [2, 3, 4]
    for row in rows:
        uniform = next(r for r in rows if r["method"] == "uniform" and r["bits"] == row["bits"])
        assert row["bytes"] is None or row["bytes"] <= uniform["bytes"]


def test_quantize_shows_tiers_and_drift_on_stdout(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    assert main(shell.quantize(tmp_path / "run", "--compression", "2")) == 0
    shown = capsys.readouterr()
    assert "mean absolute error of y by step" in shown.out
    assert "from 3 contexts only" in shown.out
    assert "all weights together, rounded on each half of the contexts and judged on the other" in shown.out
    assert "compared on held-out contexts (at best: the least that" in shown.err
    plans = [line for line in shown.err.splitlines() if line.startswith("  measured, ")]
    assert len(plans) > 1
    assert shown.err.count("← chosen") == 1
    assert "\\x" not in shown.out
    assert "score: 5 weights in" in shown.err


def test_the_input_is_as_it_was(shell: Shell) -> None:
    assert shell.case.model.read_bytes() == shell.before


def test_a_run_directory_that_holds_a_run_needs_force(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    arguments = shell.quantize(tmp_path / "run", "--compression", "2")
    assert main(arguments) == 0
    first = (tmp_path / "run" / "m.tqs.onnx").read_bytes()
    assert main(arguments) == 2
    assert "already holds" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert (tmp_path / "run" / "m.tqs.onnx").read_bytes() == first


def test_an_out_that_is_a_file_is_refused(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(shell.quantize(tmp_path / "file", "--compression", "2", "--force")) == 2
    assert "is a file, not a run directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("option", ["--max-drift=1e-9", "--min-compression=50", "--gate=drift:p95<=1e-9"])
def test_a_failed_gate_is_exit_3_and_the_manifest_says_so(
    shell: Shell, tmp_path: Path, capsys: Capture, option: str
) -> None:
    assert main(shell.quantize(tmp_path / "run", "--compression", "2", option)) == 3
    assert "FAILED" in capsys.readouterr().err
    (gate,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["gates"]
    assert gate["passed"] is False


def test_gates_that_hold_are_exit_0(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    gates = ["--max-drift", "10", "--max-degradation", "1000", "--min-compression", "2"]
    assert main(shell.quantize(tmp_path / "run", "--compression", "2", *gates)) == 0
    assert capsys.readouterr().err.count("holds") == 3


def test_score_allocate_and_emit_give_the_file_of_quantize(
    shell: Shell, tmp_path: Path, capsys: Capture
) -> None:
    model, run = str(shell.case.model), str(tmp_path / "run")
    files = ["--rollout", str(shell.case.rollout), "--contexts", str(shell.case.contexts), "--threads", "1"]
    plan, out = f"{run}/plan.json", f"{run}/m.tqs.onnx"
    assert main(["score", model, *files, "--out", run, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["alive"] == 5
    allocate = ["allocate", model, "--scores", counts["scores"], *files, "--compression", "2"]
    assert main([*allocate, "--out", plan, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main(["emit", model, "--plan", plan, "--out", out, "--json"]) == 0
    emitted = json.loads(capsys.readouterr().out)
    assert emitted["bytes_out"] == emitted["bytes_planned"] == planned["n_bytes"]
    assert Path(out).read_bytes() == (shell.run / "m.tqs.onnx").read_bytes()


def test_verify_of_the_run_repeats_its_drift(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    manifest = tmp_path / "manifest.json"
    assert main(shell.verify("--manifest", str(manifest), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    earlier = json.loads((shell.run / "manifest.json").read_text())["verification"]
    assert found["drift"] == earlier["drift"]
    assert manifest.is_file()


def test_verify_does_not_replace_a_manifest_unasked(shell: Shell, capsys: Capture) -> None:
    assert main(shell.verify()) == 2
    assert "manifest.json: already exists" in capsys.readouterr().err


def swapped(arguments: list[str]) -> list[str]:
    """Return a command line with the scoring and the evaluation contexts changed over."""
    other = {"--contexts": "--eval-contexts", "--eval-contexts": "--contexts"}
    return [other.get(word, word) for word in arguments]


def test_a_file_is_not_evaluated_on_the_contexts_it_was_scored_on(
    shell: Shell, tmp_path: Path, capsys: Capture
) -> None:
    assert main(swapped(shell.verify("--manifest", str(tmp_path / "m.json")))) == 2
    assert "are not the contexts that the scores were measured on" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_responses_are_measured_on_the_contexts_of_the_scores(
    shell: Shell, tmp_path: Path, capsys: Capture
) -> None:
    scores = ["--scores", str(shell.run / "scores.json"), "--out", str(tmp_path / "plan.json")]
    data = ["--rollout", str(shell.case.rollout), "--contexts", str(shell.case.evaluation)]
    more = ["--compression", "2", "--objective", "measured"]
    assert main(["allocate", str(shell.case.model), *scores, *data, *more]) == 2
    assert "are not the contexts that the scores were measured on" in capsys.readouterr().err
    frontier = ["--scores", str(shell.run / "scores.json"), "--out", str(tmp_path / "f")]
    assert main(swapped(["sweep", str(shell.case.model), *frontier, *shell.case.arguments()])) == 2


def test_verify_writes_down_how_it_rolled_out(shell: Shell, tmp_path: Path) -> None:
    assert main(shell.verify("--manifest", str(tmp_path / "m.json"), "--batch", "2")) == 0
    settings = json.loads((tmp_path / "m.json").read_text())["settings"]
    assert settings["command"] == "verify"
    assert settings["options"]["run"] == {
        "provider": "auto",
        "batch": 2,
        "threads": 1,
        "devices": [],
        "strict_device": False,
        "max_memory": None,
    }


def test_a_spec_error_names_the_file_that_was_given(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other name.toml"
    other.write_text(shell.case.rollout.read_text().replace('output = "y"', 'output = "q"'))
    files = ["--rollout", str(other), "--contexts", str(shell.case.contexts), "--out", str(tmp_path / "r")]
    assert main(["score", str(shell.case.model), *files]) == 2
    assert f"{other} feedback[0].output: the model has no output 'q'" in capsys.readouterr().err


def test_parts_of_an_output_that_no_variable_names_are_said_to_be_unjudged(
    shell: Shell, tmp_path: Path, capsys: Capture
) -> None:
    spec = tmp_path / "rollout.toml"
    named = '[[variable]]\nname = "a"\noutput = "y"\naxis = 1\nindex = 3\n'
    spec.write_text(shell.case.rollout.read_text() + named)
    files = ["--rollout", str(spec), "--contexts", str(shell.case.contexts), "--out", str(tmp_path / "r")]
    assert main(["score", str(shell.case.model), *files]) == 0
    assert "[[variable]] names 1 of 16 parts of 'y': the others are not judged" in capsys.readouterr().err


def test_quantize_takes_a_compression_of_the_weights(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    assert main(shell.quantize(tmp_path / "run", "--weight-compression", "3", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    plan = read_plan(Path(found["plan"]))
    stored = sum(4 * math.prod(a.shape) for a in plan.assignments)
    assert 3.0 <= stored / plan.weight_bytes < 3.5


def test_verify_holds_the_file_to_gates(shell: Shell, tmp_path: Path) -> None:
    assert main(shell.verify("--manifest", str(tmp_path / "m.json"), "--max-drift", "1e-9")) == 3


def test_verify_of_a_tampered_file_is_exit_3(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    arguments = shell.verify("--manifest", str(tmp_path / "m.json"))
    arguments[1] = str(shell.case.model)
    assert main(arguments) == 3
    assert capsys.readouterr().err.startswith("tqs: error: ")
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("which", ["model", "scores"])
def test_allocate_never_overwrites_what_it_reads(shell: Shell, capsys: Capture, which: str) -> None:
    scores = shell.run / "scores.json"
    out = shell.case.model if which == "model" else scores
    before = out.read_bytes()
    arguments = ["allocate", str(shell.case.model), "--scores", str(scores), "--compression", "2"]
    assert main([*arguments, "--out", str(out), "--force"]) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_score_never_overwrites_the_model(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "scores.csv"
    model.write_bytes(shell.before)
    arguments = ["score", str(model), *shell.case.arguments()[:4], "--out", str(tmp_path), "--force"]
    assert main(arguments) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert model.read_bytes() == shell.before


def test_allocate_never_writes_codes_over_contexts(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    contexts = tmp_path / "codes.npz"
    contexts.write_bytes(shell.case.contexts.read_bytes())
    before = contexts.read_bytes()
    data = ["--rollout", str(shell.case.rollout), "--contexts", str(contexts), "--rounding", "gptq"]
    arguments = ["allocate", str(shell.case.model), "--scores", str(shell.run / "scores.json"), *data]
    assert main([*arguments, "--compression", "2", "--out", str(tmp_path / "plan.json"), "--force"]) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert contexts.read_bytes() == before


def test_emit_never_overwrites_the_model(shell: Shell, capsys: Capture) -> None:
    model, plan = str(shell.case.model), str(shell.run / "plan.json")
    assert main(["emit", model, "--plan", plan, "--out", model, "--force"]) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert shell.case.model.read_bytes() == shell.before


def test_emit_never_overwrites_the_external_data_of_the_model(
    shell: Shell, tmp_path: Path, capsys: Capture
) -> None:
    model = tmp_path / "x.onnx"
    save_model(load_model(shell.case.model), model, external=True)
    data = tmp_path / "x.onnx.data"
    before = data.read_bytes()
    arguments = ["emit", str(model), "--plan", str(shell.run / "plan.json"), "--force"]
    assert main([*arguments, "--out", str(data)]) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert data.read_bytes() == before


def test_a_manifest_never_overwrites_an_input(shell: Shell, capsys: Capture) -> None:
    assert main(shell.verify("--manifest", str(shell.case.model), "--force")) == 2
    assert "would overwrite an input" in capsys.readouterr().err
    assert shell.case.model.read_bytes() == shell.before


def test_inspect_lists_weights_and_suggests_the_feedback(shell: Shell, capsys: Capture) -> None:
    assert main(["inspect", str(shell.case.model)]) == 0
    out = capsys.readouterr().out
    assert "5 weights of 1,616 values" in out
    assert 'output = "y"' in out


def test_inspect_prints_one_json_object(shell: Shell, capsys: Capture) -> None:
    assert main(["inspect", str(shell.case.model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [w["name"] for w in found["weights"]] == ["W1", "b1", "W2", "b2", "decay"]
    assert found["weights"][0]["channel_axis"] == 1


def test_doctor_says_that_the_cpu_works(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["providers"]["cpu"] == {"works": True, "reason": None}


def test_traceback_may_stand_anywhere(capsys: Capture) -> None:
    assert main(["inspect", "gone.onnx", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("tqs: error: gone.onnx: no such file")


def test_a_bug_is_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of\nours")

    monkeypatch.setattr("tqs_onnx.cli.inspect.open_source", broken)
    assert main(["inspect", "any.onnx"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == r"tqs: error: internal error: ZeroDivisionError: of\nours (see --traceback)"


def test_ctrl_c_is_one_line_that_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tqs_onnx.cli.inspect.open_source", stopped)
    assert main(["inspect", "any.onnx"]) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "tqs: error: stopped. Run the same command again to resume"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_signal_that_comes_when_the_command_is_done_does_not_change_its_code(
    number: signal.Signals,
) -> None:
    script = f"""
import atexit, os, sys
from tqs_onnx.cli.main import main
atexit.register(lambda: os.kill(os.getpid(), {number:d}))
sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", "missing.onnx"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.slow
def test_the_demo_quarters_its_model(tmp_path: Path, capsys: Capture) -> None:
    assert main(["demo", "--out", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KEYS
    assert found["compression"] >= 4
    assert found["drift_measured"] > 0


@pytest.mark.parametrize("more", [["--objective", "measured"], ["--rounding", "qep"]])
def test_allocate_asks_for_contexts_where_it_must_roll_out(
    shell: Shell, tmp_path: Path, capsys: Capture, more: list[str]
) -> None:
    scores = str(shell.run / "scores.json")
    arguments = ["allocate", str(shell.case.model), "--scores", scores, "--compression", "2", *more]
    assert main([*arguments, "--out", str(tmp_path / "p.json")]) == 2
    assert "Give --rollout and --contexts" in capsys.readouterr().err


def test_allocate_and_emit_round_by_data_as_quantize_does(shell: Shell, tmp_path: Path) -> None:
    rounding = ["--rounding", "gptq", "--repair", "0", "--compression", "3", "--threads", "1"]
    assert main(shell.quantize(tmp_path / "run", *rounding)) == 0
    data = ["--rollout", str(shell.case.rollout), "--contexts", str(shell.case.contexts)]
    plan, scores = tmp_path / "plan.json", tmp_path / "run" / "scores.json"
    model = str(shell.case.model)
    assert main(["allocate", model, "--scores", str(scores), *rounding, *data, "--out", str(plan)]) == 0
    assert main(["emit", model, "--plan", str(plan), "--out", str(tmp_path / "o.onnx")]) == 0
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "run" / "m.tqs.onnx").read_bytes()


def test_rounding_by_data_plans_by_measured_responses(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    arguments = shell.quantize(tmp_path / "r", "--compression", "2", "--rounding", "gptq", "--json")
    assert main(arguments) == 0
    capsys.readouterr()
    assert json.loads((tmp_path / "r" / "plan.json").read_text())["solver"]["objective"] == "measured"


def test_rules_by_name_reach_the_plan(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.json"
    arguments = ["--scores", str(shell.run / "scores.json"), "--compression", "1.5", "--out", str(out)]
    rules = ["--pin", "W1=INT8", "--forbid", "W2=FP32,INT8", "--tie", "b*", "--max-fp32", "1"]
    assert main(["allocate", str(shell.case.model), *arguments, *rules]) == 0
    capsys.readouterr()
    tiers = {a["weight"]: a["tier"] for a in json.loads(out.read_text())["assignments"]}
    assert tiers["W1"] == "INT8"
    assert tiers["W2"] not in ("FP32", "INT8")


def test_sweep_takes_lists_and_prints_one_table(shell: Shell, tmp_path: Path, capsys: Capture) -> None:
    lists = ["--solvers", "mckp,greedy", "--gamma-min-values", "none,0", "--p-fp32-values", "0,0.1"]
    arguments = [
        "--scores",
        str(shell.run / "scores.json"),
        *shell.case.arguments(),
        "--out",
        str(tmp_path / "f"),
    ]
    assert main(["sweep", str(shell.case.model), *arguments, "--compressions", "2", *lists, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 8


@pytest.mark.parametrize(("compressions", "code"), [("400", 4), ("2,400", 0)])
def test_a_sweep_fails_where_no_budget_can_be_met(
    shell: Shell, tmp_path: Path, compressions: str, code: int
) -> None:
    files = ["--scores", str(shell.run / "scores.json"), "--out", str(tmp_path / "f")]
    asked = ["--compressions", compressions]
    assert main(["sweep", str(shell.case.model), *files, *shell.case.arguments(), *asked]) == code


@pytest.mark.parametrize(("option", "text"), [("--solvers", "simplex"), ("--gamma-min-values", "low")])
def test_sweep_refuses_a_list_that_holds_a_stranger(
    shell: Shell, tmp_path: Path, capsys: Capture, option: str, text: str
) -> None:
    arguments = [
        "--scores",
        str(shell.run / "scores.json"),
        *shell.case.arguments(),
        "--out",
        str(tmp_path / "f"),
    ]
    assert main(["sweep", str(shell.case.model), *arguments, option, text]) == 2
    assert option in capsys.readouterr().err


def test_a_sweep_from_scores_that_cannot_be_written_says_so(
    shell: Shell, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqs_onnx.scoring.measure.store.os.access", lambda folder, mode: folder != shell.run)
    files = [
        "--scores",
        str(shell.run / "scores.json"),
        "--out",
        str(tmp_path / "f"),
        *shell.case.arguments(),
    ]
    assert main(["sweep", str(shell.case.model), *files, "--compressions", "2"]) == 0
    assert "new measurements are not kept" in capsys.readouterr().err
