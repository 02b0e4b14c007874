"""Timing: what is reported, how it is compared, and which jobs are timed. No test depends on a clock's value."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import forecaster, spec_of, values, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.jobs.release import timing_line
from tqs_onnx.rollout import stopwatch
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.stopwatch import Laps, race
from tqs_onnx.verification.manifest import read_manifest
from tqs_onnx.verification.timing import Timing, compared, first_inputs
from tqs_passes.errors import InputError

FP32 = Laps((0.02, 0.04, 0.03), 0.1, 8.0, 10.0, 16.0, {1: (1.0, 2.0, 4.0), 32: (8.0, 8.0, 8.0)}, {})
OURS = Laps((0.03, 0.02, 0.06), 0.1, 8.0, 5.0, 20.0, {1: (0.5, 1.0, 3.0), 32: (4.0, 2.0, 6.0)}, {})


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds() -> None:
    found = compared(FP32, OURS, threads=1)
    # 0.5/1, 1/2, 3/4 · 4/8, 2/8, 6/8 · 30/20, 20/40, 60/30
    assert (found.latency, found.load) == ({1: 0.5, 32: 0.5}, 1.5)
    assert (found.memory, found.peak, found.rounds) == (0.5, 1.25, 3)
    assert (found.fp32.latency_ms[1], found.file.load_ms) == (2000.0, 30.0)


def test_memory_that_the_system_does_not_report_has_no_ratio() -> None:
    blind = Laps((0.02,), 0.1, None, None, None, {1: (1.0,)}, {})
    found = compared(blind, blind, threads=1)
    assert found.memory is None
    assert found.peak is None
    assert "memory" not in timing_line(found)


def test_a_timing_survives_its_file() -> None:
    found = compared(FP32, OURS, threads=1)
    assert Timing.model_validate_json(found.model_dump_json()) == found


def test_the_first_inputs_repeat_the_contexts_to_fill_a_batch() -> None:
    x = values(3, 16)
    fed = first_inputs(spec_of(), Contexts({"x": x}, {}), 5)
    assert np.array_equal(fed["x"], x[[0, 1, 2, 0, 1]])


def test_a_race_times_every_file_in_every_round(tmp_path: Path) -> None:
    for name in ("a", "b"):
        onnx.save(forecaster(), tmp_path / f"{name}.onnx")
    feeds = {1: {"x": values(1, 16)}, 4: {"x": values(4, 16)}}
    files = {name: tmp_path / f"{name}.onnx" for name in ("a", "b")}
    found = race(files, feeds, threads=1, rounds=2, loads=1)
    assert {n: (len(r.load_s), {b: len(s) for b, s in r.wall_s.items()}) for n, r in found.items()} == {
        n: (1, {1: 2, 4: 2}) for n in ("a", "b")
    }
    assert all(s > 0 for r in found.values() for laps in (*r.wall_s.values(), r.load_s) for s in laps)


def test_a_race_of_short_calls_goes_on_until_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(forecaster(), tmp_path / "m.onnx")
    seconds = itertools.count()  # every look at the clock finds it a second later
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(seconds)))
    fed = {1: {"x": values(1, 16)}}
    found = race({"m": tmp_path / "m.onnx"}, fed, threads=1, rounds=2, least_s=5, loads=0)
    assert len(found["m"].wall_s[1]) == 6
    found = race({"m": tmp_path / "m.onnx"}, fed, threads=1, rounds=2, least_s=1e6, loads=0)
    assert len(found["m"].wall_s[1]) == stopwatch.MOST_ROUNDS


def test_a_file_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot be timed: the model does not load") as caught:
        race({"no": tmp_path / "no.onnx"}, {1: {"x": values(1, 16)}}, threads=1)
    assert caught.value.where == str(tmp_path / "no.onnx")


def test_a_gate_on_latency_has_the_file_timed_and_is_in_the_manifest(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster())
    # Nobody is a million times slower than FP32, nor takes a billionth of its memory.
    gates = ("--gate", "latency<=1e6", "--gate", "latency:batch=2<=1e6", "--gate", "memory<=1e-9")
    more = case.arguments("--out", str(tmp_path / "run"), "--compression", "2", "--batch", "2", *gates)
    assert main(["quantize", str(case.model), *more]) == 3
    manifest = read_manifest(tmp_path / "run" / "manifest.json")
    assert [g.passed for g in manifest.gates] == [True, True, False]
    timing = manifest.verification.timing
    assert timing is not None
    assert set(timing.latency) == {1, 2}
    assert timing.threads == 1


def test_a_file_is_not_timed_unasked(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster())
    more = case.arguments("--out", str(tmp_path / "run"), "--compression", "2")
    assert main(["quantize", str(case.model), *more]) == 0
    assert read_manifest(tmp_path / "run" / "manifest.json").verification.timing is None
