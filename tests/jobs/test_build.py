"""`tqs build`: steps run when their inputs changed, are skipped when not, and gates keep their exit code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import Case, forecaster, values, write_case
from tqs_onnx.cli.main import main
from tqs_passes.plan.plan import read_plan

BUILD = """version = 1
model = "m.onnx"
[data]
rollout = "rollout.toml"
contexts = "contexts.npz"
eval_contexts = "eval.npz"
[plan]
compression = 3
profile = "exact"
[gates]
{gates}
[run]
threads = 1
[[package]]
format = "triton"
name = "surrogate"
"""
STEPS = ["score", "allocate", "emit", "verify", "package-1"]


def project(folder: Path, gates: str = "max_drift = 10.0") -> Case:
    case = write_case(folder, forecaster(32, 64), steps=2)
    (folder / "tqs.toml").write_text(BUILD.format(gates=gates))
    return case


def build(
    folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, list[str], dict[str, str]]:
    """Run the build; return its exit code, the steps it ran, and the digests of what it made."""
    capsys.readouterr()
    code = main(["build", str(folder / "tqs.toml"), "--json", *more])
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    assert not set(document["ran"]) & set(document["skipped"])
    return code, document["ran"], document["files"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has been built once."""
    folder = tmp_path_factory.mktemp("built")
    project(folder)
    assert main(["build", str(folder / "tqs.toml")]) == 0
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "p"))


def test_a_build_makes_everything_and_says_what(built: Path) -> None:
    made = {p.relative_to(built / "run").as_posix() for p in (built / "run").rglob("*") if p.is_file()}
    expected = {"scores.json", "scores.csv", "plan.json", "m.tqs.onnx", "manifest.json", "build.json"}
    assert expected <= made
    assert {"package-1/surrogate/config.pbtxt", "package-1/surrogate/1/model.onnx"} <= made


def test_a_second_build_runs_nothing(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, ran, files = build(built, capsys)
    assert (code, ran) == (0, [])
    assert files["m.tqs.onnx"] == hashlib.sha256((built / "run/m.tqs.onnx").read_bytes()).hexdigest()


def test_another_budget_keeps_the_scores(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(copied, capsys)[1] == []  # a project that moved as a whole is unchanged
    text = (copied / "tqs.toml").read_text()
    (copied / "tqs.toml").write_text(text.replace("compression = 3", "compression = 1.5"))
    assert build(copied, capsys)[1] == STEPS[1:]


def test_a_build_may_round_by_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path)
    text = (tmp_path / "tqs.toml").read_text()
    more = 'profile = "exact"\nrounding = "gptq"\nobjective = "energy"\nrepair = 1'
    (tmp_path / "tqs.toml").write_text(text.replace('profile = "exact"', more))
    code, ran, files = build(tmp_path, capsys)
    assert (code, ran) == (0, STEPS)
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert plan.codes_sha256 is not None
    assert "codes.npz" in files
    assert build(tmp_path, capsys)[1] == []
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "codes" in json.dumps(manifest["inputs"])


def test_other_evaluation_contexts_are_only_verified(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(copied, capsys)
    np.savez(copied / "eval.npz", x=values(3, 32, seed=77))
    assert build(copied, capsys)[1] == ["verify"]


def test_a_file_that_was_changed_or_lost_is_made_again(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(copied, capsys)
    (copied / "run/m.tqs.onnx").unlink()
    code, ran, _ = build(copied, capsys)
    assert (code, ran) == (0, ["emit"])  # and comes back byte for byte: what follows is unchanged
    (copied / "run/package-1/surrogate/config.pbtxt").write_text("broken")
    assert build(copied, capsys)[1] == ["package-1"]


def test_force_runs_everything_and_gives_the_same_file(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = build(copied, capsys)[2]
    _, ran, after = build(copied, capsys, "--force")
    assert ran == STEPS
    assert after["m.tqs.onnx"] == before["m.tqs.onnx"]


def test_the_same_project_elsewhere_gives_the_same_bytes(
    built: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(copied, capsys, "--force")[1] == STEPS
    assert (copied / "run/m.tqs.onnx").read_bytes() == (built / "run/m.tqs.onnx").read_bytes()


def test_a_failed_gate_stops_the_build_and_stays_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, "max_drift = 1e-9")
    assert build(tmp_path, capsys)[:2] == (3, STEPS[:4])
    assert build(tmp_path, capsys)[:2] == (3, [])
    assert main(["build", str(tmp_path / "tqs.toml")]) == 3
    assert re.search(r"gate drift<=1e-09: \S+ FAILED", capsys.readouterr().err)
    assert not (tmp_path / "run/package-1").exists()


def test_a_tampered_plan_is_made_again_and_the_file_with_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = copied / "run/plan.json"
    before = plan.read_bytes()
    plan.write_bytes(before.replace(b'"tier": "INT', b'"tier": "FP', 1))
    assert plan.read_bytes() != before
    assert build(copied, capsys)[1] == ["allocate"]
    assert plan.read_bytes() == before


def test_a_run_that_broke_off_goes_on_where_it_was(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (copied / "tqs.toml").read_text()
    (copied / "tqs.toml").write_text(text.replace("compression = 3", "compression = 1.5"))
    with monkeypatch.context() as broken:
        broken.setattr("tqs_onnx.emission.save_model", stop)
        assert main(["build", str(copied / "tqs.toml")]) == 130
    assert {p.name for p in (copied / "run").iterdir()} == {
        "scores.json", "scores.csv", "sweep.sqlite", "plan.json", "build.json"
    }  # fmt: skip
    assert build(copied, capsys)[:2] == (0, STEPS[2:])


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_damaged_state_runs_every_step(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "run/build.json").write_text('{"version": 1, "steps"')
    assert build(copied, capsys)[1] == STEPS


def test_a_failed_step_leaves_nothing_of_an_earlier_declaration(copied: Path) -> None:
    text = (copied / "tqs.toml").read_text()
    (copied / "tqs.toml").write_text(text.replace("compression = 3", "compression = 3000"))
    assert main(["build", str(copied / "tqs.toml")]) == 4
    assert {p.name for p in (copied / "run").iterdir()} == {
        "scores.json", "scores.csv", "sweep.sqlite", "build.json"
    }  # fmt: skip


def test_a_renamed_package_leaves_no_other_beside_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copied / "tqs.toml").read_text()
    (copied / "tqs.toml").write_text(text.replace('name = "surrogate"', 'name = "other"'))
    assert build(copied, capsys)[1] == ["package-1"]
    assert [p.name for p in (copied / "run/package-1").iterdir()] == ["other"]


def test_a_state_that_names_files_elsewhere_removes_none(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = copied / "run/build.json"
    document = json.loads(state.read_text())
    for step in document["steps"].values():
        step["written"] |= {"../m.onnx": "0" * 64, "../eval.npz": "0" * 64}
    state.write_text(json.dumps(document))
    assert build(copied, capsys)[:2] == (0, STEPS)


BAD = [
    ("compression = 3", "compresion = 3", "[plan]: there is no option 'compresion'. Did you mean 'compression'?"),
    ("[run]", "[score]\nmax_contexts = 2\n[run]", "there is no option 'max_contexts'. It belongs in [data]"),
    ("[run]", "[score]\nmax_memory = 2\n[run]", "there is no option 'max_memory'. It belongs in [run]"),
    ("[run]", "[runs]", "runs: Extra inputs are not permitted"),
    ("version = 1", "version = 2", "version: Input should be 1"),
    ('model = "m.onnx"', 'model = "none.onnx"', "no such file"),
    ('contexts = "contexts.npz"', 'contexts = "none.npz"', "no such file"),
    ("threads = 1", 'threads = "many"', "threads"),
    ('format = "triton"', 'format = "floppy"', "floppy"),
    ("[plan]", "[plan", "is not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), BAD)
def test_a_bad_build_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    project(tmp_path)
    text = (tmp_path / "tqs.toml").read_text()
    assert old in text
    (tmp_path / "tqs.toml").write_text(text.replace(old, new))
    assert main(["build", str(tmp_path / "tqs.toml")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("tqs: error:")
    assert said in last


def test_a_budget_that_cannot_be_met_keeps_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path)
    text = (tmp_path / "tqs.toml").read_text().replace("compression = 3", "compression = 3000")
    (tmp_path / "tqs.toml").write_text(text)
    assert main(["build", str(tmp_path / "tqs.toml")]) == 4
    assert "cannot be met" in capsys.readouterr().err


def test_a_missing_build_file_is_refused(tmp_path: Path) -> None:
    assert main(["build", str(tmp_path / "none.toml")]) == 2


def test_a_build_without_rollout_and_contexts_writes_the_file_of_quantize(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(forecaster(), model)
    text = 'version = 1\nmodel = "m.onnx"\n[data]\ncontexts = "made:4"\n[plan]\ncompression = 2\n[run]\nthreads = 1\n'
    (tmp_path / "tqs.toml").write_text(text)
    assert main(["build", str(tmp_path / "tqs.toml")]) == 0
    line = ["quantize", str(model), "--contexts", "made:4", "--compression", "2", "--threads", "1"]
    assert main([*line, "--out", str(tmp_path / "alone")]) == 0
    for name in ("rollout.toml", "m.tqs.onnx", "scores.json", "plan.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert main(["build", str(tmp_path / "run/manifest.json"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/m.tqs.onnx").read_bytes() == (tmp_path / "alone/m.tqs.onnx").read_bytes()

    manifest = tmp_path / "run/manifest.json"
    for role, name in (("rollout", "(drafted)"), ("contexts", "(made)")):
        other = json.loads(manifest.read_text())
        assert set(other["inputs"][role]) == {name}
        other["inputs"][role] = {name: "0" * 64}
        (tmp_path / "run/other.json").write_text(json.dumps(other))
        assert main(["build", str(tmp_path / "run/other.json"), "--out", str(tmp_path / "third")]) == 2
        assert f"the {role} generated by this version differs" in capsys.readouterr().err
