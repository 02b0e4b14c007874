"""Tasks, shipments and actors, without a cluster: what is measured depends on neither order, nor cuts, nor place."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.rollouts import bed_of, forecaster, opened, scored, spec_of, values, write_case
from tests.scoring.test_group_test import modulated
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import Exposable
from tqs_onnx.scoring.measure.desk import Desk
from tqs_onnx.scoring.measure.facts import Floors
from tqs_onnx.scoring.measure.floors import SessionFloors
from tqs_onnx.scoring.measure.station import Frame, exposable_of
from tqs_onnx.scoring.measure.store import StoppedError
from tqs_onnx.scoring.measure.task import Finding, Task, parts_of, tasks_of
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_onnx.scoring.plan.sweep_plan import SweepPlan, plan_sweep
from tqs_onnx.scoring.score import Progress, score
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.scoring.workers.ray_actor import Actor, Refused
from tqs_onnx.scoring.workers.ray_shipment import Bytes, Packed, Shipment, pack, unpack
from tqs_passes.errors import InputError

TWO = Strategy("expose", 2)


def planned(source: Source, **changes: object) -> SweepPlan:
    run = {name: changes.pop(name) for name in ("batch", "threads") if name in changes}
    options = ScoreOptions(**({"strategy": TWO} | changes))  # type: ignore[arg-type]
    width = source.survey.weights[0].shape[0]
    contexts = Contexts({"x": values(3, width)}, {})
    return plan_sweep(bed_of(source, spec_of(), contexts, **run), source.sha256, options)


def shuffled(plan: SweepPlan, have: Collection[str], floors: Mapping[int, Floors]) -> tuple[Task, ...]:
    """Return the tasks of a plan cut as finely as can be, in a random order."""
    parts = list(parts_of(plan, tasks_of(plan, have, floors), workers=100))
    random.Random(len(have)).shuffle(parts)
    return tuple(parts)


@pytest.mark.parametrize("changes", [{}, {"workers": 2}])
@pytest.mark.parametrize("strategy", [TWO, Strategy("rebuild", 1)])
def test_shuffled_stopped_and_resumed_a_sweep_scores_as_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, changes: dict[str, object]
) -> None:
    source = opened(tmp_path, forecaster())
    whole = scored(source, spec_of(), values(3, 16), strategy=strategy)

    def stop_after_two(done: int, total: int, label: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def run(progress: Progress | None, **more: object) -> Scores:
        options = ScoreOptions(**({"strategy": strategy} | more))  # type: ignore[arg-type]
        bed = bed_of(source, spec_of(), Contexts({"x": values(3, 16)}, {}))
        return score(bed, source.sha256, options, progress, store=tmp_path / "s.sqlite")

    monkeypatch.setattr("tqs_onnx.scoring.score.tasks_of", shuffled)
    with pytest.raises(StoppedError):
        run(stop_after_two)
    assert run(None, **changes).to_json() == whole.to_json()


def every_key(plan: SweepPlan) -> list[str]:
    return [r.key(plan.job) for group in plan.groups for t in group for r in plan.rollouts(t)]


def test_parts_hold_every_rollout_once_and_each_sessions_floors_once(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, forecaster()))
    parts = parts_of(plan, tasks_of(plan, frozenset(), {}), workers=1)
    assert [len(p.todo) for p in parts] == [3, 3, 3, 3, 3]
    assert [key for p in parts for key in p.todo] == every_key(plan)
    assert [p.session for p in parts if p.measures_floors] == [0, 1]


def test_draws_of_one_weight_are_shared_out_among_many_workers(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, forecaster()), probe=Probe(kind=ProbeKind.GAUSS, draws=6))
    parts = parts_of(plan, tasks_of(plan, frozenset(), {}), workers=100)
    assert {len(p.todo) for p in parts} == {1}
    assert [key for p in parts for key in p.todo] == every_key(plan)


def test_few_rollouts_are_lost_with_a_worker(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, forecaster()), probe=Probe(kind=ProbeKind.GAUSS, draws=50))
    assert max(len(p.todo) for p in parts_of(plan, tasks_of(plan, frozenset(), {}), workers=1)) == 4


def test_a_family_under_group_tests_is_one_part(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, modulated()), group_test=True, strategy=Strategy("expose", 1))
    first, second = parts_of(plan, tasks_of(plan, frozenset(), {}), 100)
    assert [w.name for r in first.todo.values() for w in r.weights] == ["W"] * 3
    assert len(second.todo) == 8 * 3
    assert [first.measures_floors, second.measures_floors] == [True, False]


def test_a_session_whose_floors_alone_are_lacking_is_a_task_without_targets(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, forecaster()))
    (task,) = tasks_of(plan, every_key(plan), {1: Floors(noise=0.0, rounding=0.0)})
    assert (task.session, task.todo, task.measures_floors) == (0, {}, True)


def test_what_is_left_of_a_task_is_what_nobody_found(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, forecaster()))
    desk = Desk(plan, exposable_of(plan))
    frame, task = desk.frame(), tasks_of(plan, frozenset(), {})[0]
    whole: list[Finding] = list(desk.measure(frame, task))
    left = task
    for found in whole[:3]:
        left = left.without(found)
    rest = list(desk.measure(frame, left))
    assert isinstance(whole[0], SessionFloors)
    assert keys(whole[:3]) + keys(rest) == keys(whole)


def keys(found: list[Finding]) -> list[str]:
    """Return what was found: the keys of measurements, and the sessions of floors."""
    return [f"floors {f.session}" if isinstance(f, SessionFloors) else f[0][0] for f in found]


def packed(plan: SweepPlan) -> tuple[Shipment, dict[str, Bytes]]:
    sent: dict[str, Bytes] = {}
    return pack(plan, exposable_of(plan), lambda sha256, content: sent.update({sha256: content.copy()})), sent


def test_a_shipment_measures_the_same_where_the_models_folder_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(forecaster(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    plan = planned(open_source(folder / "m.onnx"))
    here = Desk(plan, exposable_of(plan))
    frame, tasks = here.frame(), tasks_of(plan, frozenset(), {})
    expected = [energies(here, frame, task) for task in tasks]
    shipment, sent = packed(plan)
    shutil.rmtree(folder)
    there = Desk(shipment.plan, unpack(shipment, sent.__getitem__))
    assert there.frame() == frame
    assert [energies(there, frame, task) for task in tasks] == expected


def energies(desk: Desk, frame: Frame, task: Task) -> list[object]:
    found = list(desk.measure(frame, task))
    return [f.floors if isinstance(f, SessionFloors) else (f[0][0], f[0][1].energy.tobytes()) for f in found]


def test_weights_of_equal_content_travel_once(tmp_path: Path) -> None:
    proto = forecaster()
    twin = next(t for t in proto.graph.initializer if t.name == "b2")
    twin.raw_data = next(t for t in proto.graph.initializer if t.name == "decay").raw_data
    shipment, sent = packed(planned(opened(tmp_path, proto)))
    assert (len(shipment.weights), len(sent)) == (4, 4)


def test_weights_of_16_bits_arrive_as_they_were(tmp_path: Path) -> None:
    plan = planned(opened(tmp_path, forecaster()))
    arrays = {
        "half": values(3, 4).astype(np.float16),
        "brain": values(4).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2.5, np.float64),
    }
    sent: dict[str, Bytes] = {}
    shipment = pack(plan, Exposable(onnx.ModelProto(), arrays), lambda k, v: sent.update({k: v}))
    back = unpack(shipment, sent.__getitem__).arrays
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_a_weight_that_was_damaged_on_its_way_is_refused(tmp_path: Path) -> None:
    shipment, sent = packed(planned(opened(tmp_path, forecaster())))
    weight: Packed = shipment.weights[0]
    sent[weight.sha256][3] ^= 1
    with pytest.raises(InputError, match=f"weight '{weight.name}' was damaged in transfer"):
        unpack(shipment, sent.__getitem__)


def test_an_actor_gives_what_a_desk_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(opened(tmp_path, forecaster()))
    shipment, sent = packed(plan)
    monkeypatch.setattr(
        "tqs_onnx.scoring.workers.ray_actor.imported_ray", lambda: SimpleNamespace(get=lambda ref: ref)
    )
    actor = Actor([shipment], dict(sent), threads=1)
    task = tasks_of(plan, frozenset(), {})[0]
    frame, *found = actor.work(None, task)
    desk = Desk(plan, exposable_of(plan))
    assert frame == desk.frame()
    assert keys(found) == keys(list(desk.measure(desk.frame(), task)))  # type: ignore[arg-type]


def test_an_actor_answers_an_error_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipment, sent = packed(planned(opened(tmp_path, forecaster())))
    sent[shipment.weights[0].sha256][0] ^= 1
    monkeypatch.setattr(
        "tqs_onnx.scoring.workers.ray_actor.imported_ray", lambda: SimpleNamespace(get=lambda ref: ref)
    )
    (answer,) = Actor([shipment], dict(sent), threads=1).work(None, Task(0, {}))
    assert isinstance(answer, Refused)
    assert "was damaged in transfer" in answer.what


def command(tmp_path: Path, *more: str) -> list[str]:
    case = write_case(tmp_path / "in", forecaster())
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts)]
    return ["score", str(case.model), *data, "--out", str(tmp_path / "run"), *more]


def test_without_ray_a_cluster_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command(tmp_path, "--engine", "ray")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("tqs: error: --engine ray: Ray is not installed. Install it: pip install 'tqs-onnx[ray]'")
    assert not (tmp_path / "run").exists()


def test_an_address_without_a_cluster_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--address", "head:6379")) == 2
    assert "--address names a Ray cluster" in capsys.readouterr().err
