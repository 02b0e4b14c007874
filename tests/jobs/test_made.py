"""Jobs without data: contexts are made, other ones judge the file, and every figure says so."""

import json
from pathlib import Path

import numpy as np
import pytest

import tqs_onnx as tqs
from tests.rollouts import forecaster, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.quantize import Outcome
from tqs_onnx.report.words import tiles_of
from tqs_passes.files.model import sha256_of_file


def quantized(folder: Path, **changes: object) -> Outcome:
    case = write_case(folder / "in", forecaster())
    options = tqs.QuantizeOptions(
        tqs.Budget(3.0),
        refine=tqs.RefineOptions(repair_rounds=0),
        run=tqs.RunOptions("cpu", threads=1),
        gates=("drift<=10", "compression>=3"),
    )
    return tqs.quantize(case.model, tqs.DataOptions(case.rollout, **changes), options, folder / "run")


def test_a_job_without_contexts_makes_them_and_says_so_beside_every_figure(tmp_path: Path) -> None:
    outcome = quantized(tmp_path)
    assert outcome.to_dict()["on_made_contexts"] is True
    facts = outcome.facts()
    assert facts["verdict"].endswith("(on made contexts)")
    assert facts["drift"].endswith("over 32 made contexts")
    assert "gate drift<=10 on made contexts" in facts
    assert "gate compression>=3" in facts


def test_the_contexts_that_judge_are_others_than_those_that_scored(tmp_path: Path) -> None:
    data = quantized(tmp_path).data
    assert data.evaluation.is_made
    assert not np.isin(data.evaluation.arrays["x"], data.scoring.arrays["x"]).any()


def test_the_manifest_holds_the_request_and_the_digest_of_made_contexts(tmp_path: Path) -> None:
    manifest = json.loads(quantized(tmp_path, contexts="made:6").manifest_file.read_text())
    assert manifest["settings"]["data"]["contexts"] == "made:6"
    assert manifest["settings"]["in_memory"] == []
    assert set(manifest["inputs"]["contexts"]) == set(manifest["inputs"]["evaluation"]) == {"(made)"}
    assert manifest["verification"]["on_made_contexts"] is True


def test_a_number_and_a_limit_bound_the_contexts(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster())
    options = tqs.DataOptions(case.rollout, "made:6", max_contexts=4, max_eval_contexts=5)
    data = read_data(options, open_source(case.model))
    assert (data.scoring.n_contexts, data.evaluation.n_contexts) == (4, 5)


def test_a_gate_on_the_truth_is_refused_on_made_contexts(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster())
    options = tqs.QuantizeOptions(tqs.Budget(3.0), gates=("degradation<=5",))
    with pytest.raises(tqs.InputError, match="made contexts have no truth"):
        tqs.quantize(case.model, tqs.DataOptions(case.rollout), options, tmp_path / "run")


def test_made_contexts_beside_real_ones_calibrate_or_judge_alone(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster())
    source = open_source(case.model)
    mixed = tqs.DataOptions(case.rollout, case.contexts, case.evaluation, calibration="made:9")
    data = read_data(mixed, source)
    assert data.calibration is not None
    assert (data.scoring.is_made, data.calibration.is_made, data.evaluation.is_made) == (False, True, False)
    assert read_data(tqs.DataOptions(case.rollout, case.contexts, "made"), source).evaluation.is_made


def test_the_api_makes_the_contexts_that_the_default_uses(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster())
    made = tqs.made_contexts(case.model, case.rollout, 4)
    data = read_data(tqs.DataOptions(case.rollout), open_source(case.model))
    assert np.array_equal(made.arrays["x"], data.scoring.arrays["x"][:4])
    given = read_data(tqs.DataOptions(case.rollout, made), open_source(case.model))
    assert given.evaluation.is_made


def test_a_build_makes_contexts_and_a_manifest_builds_the_same_file_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path, forecaster())
    build = tmp_path / "tqs.toml"
    build.write_text(
        f'version = 1\nmodel = "{case.model.name}"\n[data]\nrollout = "{case.rollout.name}"\n'
        'contexts = "made:6"\ninput_scale = ["x=0,0.5"]\n[plan]\ncompression = 3\nrepair = 0\n[run]\nthreads = 1\n'
    )
    assert main(["build", str(build)]) == 0
    again = ["build", str(tmp_path / "run" / "manifest.json"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    files = [tmp_path / folder / "m.tqs.onnx" for folder in ("run", "again")]
    assert sha256_of_file(files[0]) == sha256_of_file(files[1])
    capsys.readouterr()
    assert main(["build", str(build), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ran"] == []


def test_the_tiles_of_a_report_name_made_contexts(tmp_path: Path) -> None:
    tiles = {tile.label: tile.note for tile in tiles_of(quantized(tmp_path, contexts="made:4").verification)}
    assert "32 made contexts" in tiles["Drift from FP32"]
    assert tiles["Worst degradation"] == "made contexts have no truth"
