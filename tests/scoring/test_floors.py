"""Every session has floors of its own, and a weight is judged by those of the session it was perturbed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rollouts import bed_of, forecaster, opened, scored, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import Rebuilt
from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.station import Station
from tqs_onnx.scoring.measure.store import StoppedError
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan
from tqs_onnx.scoring.score import Progress, score
from tqs_onnx.scoring.scores import Scores, Status

TWO = Strategy("expose", 2)


def _sessions(scores: Scores) -> dict[str, int | None]:
    return {w.weight: w.session for w in scores.weights}


def test_each_session_has_floors_and_each_weight_names_its_session(tmp_path: Path) -> None:
    scores = scored(opened(tmp_path, forecaster()), spec_of(), values(3, 16), strategy=TWO)
    assert len(scores.floors) == scores.sessions == 2
    assert set(_sessions(scores).values()) == {0, 1}
    assert all(f.noise <= f.rounding for f in scores.floors)
    assert scores.rounding_floor == max(f.rounding for f in scores.floors) > 0


def test_a_weight_is_judged_by_the_floors_of_its_own_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def floors_of(plan: SweepPlan, station: Station, session: int) -> Floors:
        return (Floors(noise=0.0, rounding=1e9), Floors(noise=0.0, rounding=0.0))[session]

    monkeypatch.setattr("tqs_onnx.scoring.measure.desk.floors_of", floors_of)
    scores = scored(opened(tmp_path, forecaster()), spec_of(), values(3, 16), strategy=TWO)
    expected = {name: (Status.BELOW_FLOOR, Status.ALIVE)[i or 0] for name, i in _sessions(scores).items()}
    assert {w.weight: w.status for w in scores.weights} == expected


def test_where_sessions_are_rebuilt_the_noise_is_that_of_another_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, ...]] = []
    build = Rebuilt._built

    def counting(self: Rebuilt, replaced: dict[str, object]) -> object:
        built.append(tuple(replaced))
        return build(self, replaced)  # type: ignore[arg-type]

    monkeypatch.setattr(Rebuilt, "_built", counting)
    scored(opened(tmp_path, forecaster()), spec_of(), values(3, 16), strategy=Strategy("rebuild", 1))
    assert built[:2] == [(), ("W1",)]


def test_floors_that_are_kept_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def floors_of(plan: SweepPlan, station: Station, session: int) -> Floors:
        measured.append(session)
        return Floors(noise=0.0, rounding=0.0)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def run(progress: Progress | None = None) -> Scores:
        contexts = Contexts({"x": values(2, 16)}, {})
        bed = bed_of(source, spec_of(), contexts)
        options = ScoreOptions(strategy=TWO)
        return score(bed, source.sha256, options, progress, store=tmp_path / "s.sqlite")

    source = opened(tmp_path, forecaster())
    monkeypatch.setattr("tqs_onnx.scoring.measure.desk.floors_of", floors_of)
    with pytest.raises(StoppedError):
        run(stop)
    run()
    assert measured == [0, 1]
