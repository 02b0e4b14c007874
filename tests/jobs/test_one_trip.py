"""One trip: the command, its single stages, a build and the Python API give the same bytes for the same options."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest

import tqs_onnx as tqs
from tests.rollouts import Case, bed_of, forecaster, write_case
from tqs_onnx.cli.flag import default_of, field_paths
from tqs_onnx.cli.flags import BASELINE, QUANTIZE
from tqs_onnx.cli.main import cli, main
from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions, options_from, settings_of
from tqs_onnx.rollout import session
from tqs_onnx.rollout.feedback import FeedbackSession
from tqs_onnx.rollout.options import RunOptions
from tqs_passes.plan.plan import read_plan

RUN = RunOptions("cpu", threads=1)
#: Flags of quantize, the same as tables of a build file, and as options of the API.
SETS: dict[str, tuple[list[str], dict[str, dict[str, Any]], tqs.QuantizeOptions]] = {
    "defaults": (
        ["--compression", "3"],
        {"plan": {"compression": 3}},
        tqs.QuantizeOptions(tqs.Budget(3.0), run=RUN),
    ),
    "rounded by data": (
        ["--compression", "4", "--rounding", "gptq", "--profile", "exact"],
        {"plan": {"compression": 4, "rounding": "gptq", "profile": "exact"}},
        tqs.QuantizeOptions(
            tqs.Budget(4.0),
            profile="exact",
            refine=tqs.RefineOptions(rounding=tqs.RoundingOptions("gptq")),
            run=RUN,
        ),
    ),
    "qep, tuned": (
        ["--max-bytes", "7000", "--rounding", "qep", "--response-bits", "none"],
        {"plan": {"max_bytes": 7000, "rounding": "qep"}, "score": {"response_bits": "none"}},
        tqs.QuantizeOptions(
            tqs.Budget(max_bytes=7000),
            score=tqs.ScoreOptions(response_bits=()),
            refine=tqs.RefineOptions(rounding=tqs.RoundingOptions("qep")),
            run=RUN,
        ),
    ),
    "tiers, the paper's objective and a gate": (
        ["--weight-compression", "3", "--objective", "paper", "--tiers", "FP32,INT8,INT4", "--gate", "drift<=9"],
        {
            "plan": {"weight_compression": 3.0, "objective": "paper", "tiers": "FP32,INT8,INT4"},
            "gates": {"gate": ["drift<=9"]},
        },
        tqs.QuantizeOptions(
            tqs.Budget(weight_compression=3.0),
            plan=tqs.PlanOptions(tqs.Objective.PAPER),
            tiers=tqs.TierSet((tqs.Tier.FP32, tqs.Tier.INT8, tqs.Tier.INT4)),
            gates=("drift<=9",),
            run=RUN,
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case(tmp_path_factory.mktemp("case"), forecaster(32, 64), steps=2, n=6)


def made(run: Path) -> dict[str, bytes]:
    """Return what every way in writes: the file, its plan, and its integers where they were chosen by data."""
    names = ("m.tqs.onnx", "plan.json", "codes.npz", "scores.json")
    return {name: (run / name).read_bytes() for name in names if (run / name).exists()}


def by_quantize(case: Case, run: Path, flags: list[str]) -> None:
    more = ["--providers", "cpu", "--out", str(run), *flags]
    assert main(["quantize", str(case.model), *case.arguments(), *more]) == 0


def by_single_commands(case: Case, run: Path, flags: list[str]) -> None:
    model, scores, plan = str(case.model), str(run / "scores.json"), str(run / "plan.json")
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts)]
    here = ["--providers", "cpu", "--threads", "1"]
    scoring, gates, rest = split(flags)
    assert main(["score", model, *data, *here, *scoring, "--out", str(run)]) == 0
    allocate = ["allocate", model, "--scores", scores, *data, *here, *rest, "--out", plan]
    assert main(allocate) == 0
    file = str(run / "m.tqs.onnx")
    assert main(["emit", model, "--plan", plan, "--out", file]) == 0
    judge = ["--plan", plan, "--scores", scores, "--eval-contexts", str(case.evaluation), *gates]
    assert main(["verify", file, "--source", model, *judge, *data, *here]) == 0


def split(flags: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the flags of score, of verify and of allocate; every flag here has one value."""
    pairs = [flags[i : i + 2] for i in range(0, len(flags), 2)]
    scoring = [w for p in pairs if p[0] == "--response-bits" for w in p]
    gates = [w for p in pairs if p[0] == "--gate" for w in p]
    rest = [w for p in pairs if p[0] not in ("--response-bits", "--gate") for w in p]
    return scoring, gates, rest


def toml(value: object) -> str:
    return json.dumps(value)


def by_build(case: Case, run: Path, tables: dict[str, dict[str, Any]]) -> None:
    lines = ["version = 1", f"model = {toml(str(case.model))}", f"out = {toml(str(run))}", "[data]"]
    lines += [f"rollout = {toml(str(case.rollout))}", f"contexts = {toml(str(case.contexts))}"]
    lines += [f"eval_contexts = {toml(str(case.evaluation))}"]
    run_table = {"threads": 1, "providers": "cpu"} | tables.get("run", {})
    for name, table in {**tables, "run": run_table}.items():
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in table.items())]
    file = run.with_suffix(".toml")
    file.write_text("\n".join(lines) + "\n")
    assert main(["build", str(file)]) == 0


def by_api(case: Case, run: Path, options: tqs.QuantizeOptions) -> None:
    data = tqs.DataOptions(case.rollout, case.contexts, case.evaluation)
    tqs.quantize(case.model, data, options, run)


@pytest.mark.parametrize("name", SETS)
def test_every_way_in_gives_the_same_bytes(name: str, case: Case, tmp_path: Path) -> None:
    flags, tables, options = SETS[name]
    by_quantize(case, tmp_path / "quantize", flags)
    by_single_commands(case, tmp_path / "single", flags)
    by_build(case, tmp_path / "build", tables)
    by_api(case, tmp_path / "api", options)
    expected = made(tmp_path / "quantize")
    assert len(expected) >= 3
    for way in ("single", "build", "api"):
        assert made(tmp_path / way) == expected, way


@pytest.mark.parametrize("name", SETS)
def test_a_build_and_the_api_have_the_settings_of_quantize(name: str, case: Case, tmp_path: Path) -> None:
    flags, tables, options = SETS[name]
    by_quantize(case, tmp_path / "quantize", flags)
    by_build(case, tmp_path / "build", tables)
    settings = [
        json.loads((tmp_path / way / "manifest.json").read_text())["settings"]
        for way in ("quantize", "build")
    ]
    assert settings[0] == settings[1]
    assert options_from(settings[0]["options"], QuantizeOptions) == options


def test_the_stages_of_the_api_give_the_bytes_of_quantize(case: Case, tmp_path: Path) -> None:
    options = SETS["rounded by data"][2]
    by_api(case, tmp_path / "api", options)
    source = tqs.open_model(case.model, run=RUN)
    data = tqs.load_data(source, case.rollout, case.contexts, case.evaluation)
    scores = tqs.score(source, data, options.score, run=RUN)
    allocated = tqs.allocate(source, scores, options, data)
    emitted = tqs.emit(source, allocated, tmp_path / "m.tqs.onnx")
    assert emitted.out.read_bytes() == (tmp_path / "api" / "m.tqs.onnx").read_bytes()
    found = tqs.verify(source, emitted, allocated, scores, data, run=RUN)
    theirs = json.loads((tmp_path / "api" / "manifest.json").read_text())["verification"]
    assert found.verification.model_dump(mode="json") == theirs


def test_values_give_the_bytes_of_files(case: Case, tmp_path: Path) -> None:
    options = SETS["defaults"][2]
    by_api(case, tmp_path / "files", options)
    rollout = tomllib.loads(case.rollout.read_text())
    with np.load(case.contexts) as a, np.load(case.evaluation) as b:
        data = tqs.DataOptions(rollout, dict(a), dict(b))
    outcome = tqs.quantize(onnx.load(case.model), data, options, tmp_path / "values")
    # the plan names the file it was made from, and onnx may write a model's fields in another order
    theirs, ours = read_plan(tmp_path / "files" / "plan.json"), outcome.plan
    assert [a.model_dump() for a in ours.assignments] == [a.model_dump() for a in theirs.assignments]
    inputs = json.loads(outcome.manifest_file.read_text())["inputs"]
    assert set(inputs["contexts"]) == {"(in memory)"}


def test_a_manifest_makes_the_same_bytes_again(case: Case, tmp_path: Path) -> None:
    by_quantize(case, tmp_path / "run", SETS["rounded by data"][0])
    assert main(["build", str(tmp_path / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 0
    assert made(tmp_path / "again") == made(tmp_path / "run")


def test_a_manifest_whose_input_changed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_case(tmp_path / "in", forecaster(), steps=2)
    by_quantize(own, tmp_path / "run", ["--compression", "2"])
    own.contexts.write_bytes(own.evaluation.read_bytes())
    assert main(["build", str(tmp_path / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 2
    assert "the content of contexts differs from that in the manifest" in capsys.readouterr().err


def test_an_impossible_budget_is_refused_before_anything_is_scored(case: Case, tmp_path: Path) -> None:
    out = ["--providers", "cpu", "--compression", "3000", "--out", str(tmp_path / "quantize")]
    assert main(["quantize", str(case.model), *case.arguments(), *out]) == 4
    with pytest.raises(AssertionError):
        by_build(case, tmp_path / "build", {"plan": {"compression": 3000}})
    assert not list(tmp_path.rglob("*.sqlite"))


# ---- options


def test_every_field_of_the_options_is_written_down() -> None:
    def walk(value: Any, settings: Any, path: str) -> list[str]:
        if not is_dataclass(value):
            return [] if settings is not ... else [path]
        return [
            lacking
            for f in fields(value)
            for lacking in walk(getattr(value, f.name), settings.get(f.name, ...), f"{path}.{f.name}")
        ]

    for options in (QuantizeOptions(), BaselineOptions()):
        assert walk(options, settings_of(options), "") == []


@pytest.mark.parametrize("name", SETS)
def test_settings_turn_back_into_the_options(name: str) -> None:
    options = SETS[name][2]
    assert options_from(json.loads(json.dumps(settings_of(options))), QuantizeOptions) == options
    more = replace(
        options, score=replace(options.score, blocks=tqs.Blocks("auto"), early_stop=tqs.EarlyStop(0.1))
    )
    assert options_from(json.loads(json.dumps(settings_of(more))), QuantizeOptions) == more


def test_every_field_can_be_given_by_a_flag() -> None:
    paths = {flag.path for flag in QUANTIZE}
    known = set(field_paths(QuantizeOptions()))
    # Settings of single methods: `tqs baseline` has flags for them.
    prefix = "refine.rounding."
    by_baseline = {path.removeprefix(prefix) for path in known - paths if path.startswith(prefix)}
    assert by_baseline <= {flag.path for flag in BASELINE}
    optional = {"score.blocks", "score.early_stop", "serving.compute"}  # their own fields have flags
    lacking = known - paths - optional - {f"{prefix}{p}" for p in by_baseline}
    assert lacking == {"score.strategy"}  # what the cost model says; for benchmarks


@pytest.mark.parametrize("name", ["quantize", "score", "allocate", "sweep", "baseline", "verify"])
def test_no_flag_has_a_default_of_its_own(name: str) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command is not None
    keys = {flag.key for flag in (*QUANTIZE, *BASELINE)}
    defaults = {p.name: p.get_default(context) for p in command.params if p.name in keys and not p.required}
    assert {name: value for name, value in defaults.items() if value not in (None, (), False)} == {}


def test_help_shows_the_defaults_of_the_classes() -> None:
    shown = {flag.name: default_of(flag) for flag in QUANTIZE}
    assert shown["--candidates"] == str(tqs.RefineOptions().candidates)
    assert shown["--rounding"] == tqs.RefineOptions().rounding.method
    assert shown["--providers"] == "auto"
    assert shown["--probe-bits"] == str(tqs.Probe().bits)
    assert shown["--rows/--no-rows"] == "rows"


# ---- sessions


def test_a_sweep_of_three_targets_rounded_by_data_opens_at_most_nine_sessions(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts)]
    here = ["--providers", "cpu", "--threads", "1"]
    assert main(["score", str(case.model), *data, *here, "--out", str(tmp_path / "run")]) == 0
    opened: list[object] = []
    plain = session.ort.InferenceSession

    def counted(*arguments: object, **options: object) -> object:
        opened.append(arguments)
        return plain(*arguments, **options)

    monkeypatch.setattr(session.ort, "InferenceSession", counted)
    sweep = ["--scores", str(tmp_path / "run/scores.json"), "--eval-contexts", str(case.evaluation)]
    more = ["--rounding", "qep", "--compressions", "2,3,4", "--out", str(tmp_path / "sweep")]
    assert main(["sweep", str(case.model), *data, *here, *sweep, *more]) == 0
    assert len(opened) <= 9


def test_a_testbed_that_was_closed_opens_its_sessions_again(case: Case) -> None:
    source = tqs.open_model(case.model, run=RUN)
    data = tqs.load_data(source, case.rollout, case.contexts, case.evaluation)
    bed = bed_of(source, data.spec, data.scoring, {"y": 1.0})
    before = bed.drift(bed.exposed.pieces({}))
    first = bed.exposed.session
    bed.close()
    assert bed.on(data.evaluation).exposed.session is not first
    assert bed.drift(bed.exposed.pieces({})) == before == 0.0


# ---- what a reviewer found


def test_rounding_by_data_without_integers_names_no_codes(case: Case, tmp_path: Path) -> None:
    tables = {"plan": {"compression": 1.2, "rounding": "gptq", "tiers": "FP32,FP16"}}
    by_build(case, tmp_path / "run", tables)
    assert read_plan(tmp_path / "run" / "plan.json").codes_sha256 is None
    plan = str(tmp_path / "run" / "plan.json")
    assert main(["emit", str(case.model), "--plan", plan, "--out", str(tmp_path / "again.onnx")]) == 0


def test_a_degradation_without_bound_is_kept_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = write_case(tmp_path / "in", forecaster(), steps=2)
    source = tqs.open_model(own.model, run=RUN)
    data = tqs.load_data(source, own.rollout, own.contexts, own.evaluation)
    exact = bed_of(source, data.spec, data.evaluation).roll_file(own.model).outputs["y"]
    with np.load(own.evaluation) as stored:
        np.savez(own.evaluation, **{**stored, "truth/y": exact})
    with pytest.raises(AssertionError):
        by_build(own, tmp_path / "run", {"plan": {"compression": 3}, "gates": {"max_degradation": 5}})
    said = capsys.readouterr()
    assert "gate degradation<=5.0: inf FAILED" in said.err
    assert "worse than an exact FP32" in said.out


def test_a_verify_that_is_skipped_leaves_no_stale_settings(case: Case, tmp_path: Path) -> None:
    tables = {"plan": {"compression": 3}}
    by_build(case, tmp_path / "run", tables)
    by_build(case, tmp_path / "run", {**tables, "run": {"max_memory": 4000}})
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert settings["options"]["run"]["max_memory"] == 4_000_000_000


def test_the_api_refuses_what_does_not_belong_together(case: Case, tmp_path: Path) -> None:
    options = SETS["defaults"][2]
    outcome = tqs.quantize(
        case.model, tqs.DataOptions(case.rollout, case.contexts, case.evaluation), options, tmp_path / "run"
    )
    swapped = tqs.DataOptions(case.rollout, case.evaluation, case.contexts)
    with pytest.raises(tqs.InputError, match="contexts"):
        tqs.verify(case.model, outcome.emitted, outcome.plan, outcome.scores, swapped, run=RUN)
    other = outcome.scores.model_copy(update={"source_sha256": "0" * 64})
    data = tqs.DataOptions(case.rollout, case.contexts, case.evaluation)
    with pytest.raises(tqs.InputError, match="another model"):
        tqs.verify(case.model, outcome.emitted, outcome.plan, other, data, run=RUN)
    with pytest.raises(tqs.InputError, match="exists"):
        tqs.emit(case.model, outcome.plan, outcome.emitted)


def test_a_changed_file_in_a_folder_of_contexts_is_noticed(tmp_path: Path) -> None:
    own = write_case(tmp_path / "in", forecaster(), steps=2)
    folder = tmp_path / "contexts"
    folder.mkdir()
    with np.load(own.contexts) as stored:
        np.save(folder / "x.npy", stored["x"])
    by_quantize(replace(own, contexts=folder), tmp_path / "run", ["--compression", "2"])
    np.save(folder / "x.npy", 1.5 * np.load(folder / "x.npy"))
    assert main(["build", str(tmp_path / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 2


def test_roles_that_a_source_has_reach_the_manifest(case: Case, tmp_path: Path) -> None:
    source = tqs.open_model(case.model, roles=["W1=io.input"], run=RUN)
    data = tqs.DataOptions(case.rollout, case.contexts, case.evaluation)
    outcome = tqs.quantize(source, data, SETS["defaults"][2], tmp_path / "run")
    settings = json.loads(outcome.manifest_file.read_text())["settings"]
    assert settings["options"]["roles"] == ["W1=io.input"]


def test_a_model_in_memory_is_said_to_be(case: Case, tmp_path: Path) -> None:
    data = tqs.DataOptions(case.rollout, case.contexts, case.evaluation)
    tqs.quantize(onnx.load(case.model), data, SETS["defaults"][2], tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert (settings["model"], settings["in_memory"]) == (None, ["model"])
    assert main(["build", str(tmp_path / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 2


def test_sessions_and_contexts_are_opened_once_for_a_testbed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tqs.open_model(case.model, run=RUN)
    data = tqs.load_data(source, case.rollout, case.contexts, case.evaluation)
    rollout = data.spec.rollout.model_copy(update={"flip_invariant": True})
    bed = bed_of(source, data.spec.model_copy(update={"rollout": rollout}), data.scoring, {"y": 1.0})
    made: list[object] = []
    plain = FeedbackSession.__init__

    def counted(self: FeedbackSession, *arguments: object) -> None:
        made.append(self)
        plain(self, *arguments)

    monkeypatch.setattr(FeedbackSession, "__init__", counted)
    assert [bed.drift(bed.exposed.pieces({})) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bed.exposed is bed.exposed
    assert len(made) == 1
