"""Made contexts beside given ones: for calibration alone, in the data's units, and they judge nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import forecaster, opened, spec_of, values, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import Source
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.jobs.stages import bed_of
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.rollout.contexts.context_set import Contexts, joined
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_onnx.rounding.calibrate import Calibration
from tqs_passes.errors import InputError
from tqs_passes.plan.targets import Serving

GIVEN = {"x": 5 + 3 * values(6, 16)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return opened(tmp_path_factory.mktemp("beside"), forecaster())


def options(n: int) -> DataOptions:
    return DataOptions(spec_of(4), GIVEN, {"x": values(3, 16, seed=9)}, made_beside=n)


def test_they_are_made_in_the_units_of_the_data(source: Source) -> None:
    data = read_data(options(64), source)
    assert data.beside is not None
    assert data.beside.is_made
    made = data.beside.arrays["x"]
    assert made.shape == (64, 16)
    # 64 · 16 values of deviation 3, many of them correlated: means within half a deviation.
    assert made.mean() == pytest.approx(GIVEN["x"].mean(), abs=1.5)
    assert made.std() == pytest.approx(GIVEN["x"].std(), rel=0.3)
    assert "calibration also on made 64 contexts" in data.notes[-1]
    assert data.scoring.n_contexts == 6
    assert data.digests["beside"]["(made)"]


def test_none_stand_beside_contexts_that_are_made_themselves(source: Source) -> None:
    assert read_data(DataOptions(spec_of(4), made_beside=8), source).beside is None


def test_a_negative_number_is_refused(source: Source) -> None:
    with pytest.raises(InputError, match="made_beside"):
        read_data(options(-1), source)


def test_the_sums_of_both_sets_add_up(source: Source) -> None:
    data = read_data(options(5), source)
    assert data.beside is not None
    bed = bed_of(source, data, RunOptions("cpu", threads=1))
    both = instruments_on(bed, None, data.beside).calibration.statistics("W1", {}).H
    apart = [Calibration(bed.on(c)).statistics("W1", {}).H for c in (data.scoring, data.beside)]
    assert both == pytest.approx(apart[0] + apart[1], rel=1e-6)


def test_they_judge_nothing(source: Source) -> None:
    data = read_data(options(5), source)
    bed = bed_of(source, data, RunOptions("cpu", threads=1))
    instruments = instruments_on(bed, None, data.beside)
    plan = unscored_uniform_plan(source, 3, "exact", Serving())
    rolled = instruments.cross_fit.rolled(plan, RoundingOptions("gptq"))
    assert rolled is not None
    assert sorted(rolled.at) == list(range(6))


def test_sets_of_other_shapes_do_not_join() -> None:
    with pytest.raises(InputError, match="has shape"):
        joined(Contexts({"x": values(2, 3)}, {}), Contexts({"x": values(2, 4)}, {}))


def test_the_command_says_it_and_the_manifest_holds_it(tmp_path: Path) -> None:
    case = write_case(tmp_path, forecaster(), steps=2, n=4)
    run = tmp_path / "run"
    arguments = [
        "quantize",
        str(case.model),
        "--rollout",
        str(case.rollout),
        "--contexts",
        str(case.contexts),
    ]
    arguments += ["--eval-contexts", str(case.evaluation), "--compression", "3", "--rounding", "gptq"]
    assert main([*arguments, "--made-beside", "4", "--threads", "1", "--out", str(run)]) == 0
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["data"]["made_beside"] == 4
    assert np.isfinite(manifest["verification"]["drift"]["total"])
