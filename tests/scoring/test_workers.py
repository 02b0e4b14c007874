"""Worker processes, dry runs and memory bounds: where and how much, never what."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.rollouts import REPLACE, Case, forecaster, opened, scored, spec_of, values, write_case
from tqs_onnx.cli.main import cli, main
from tqs_onnx.rollout import held
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.injection import exposable
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.scoring.measure.task import Finding, Task
from tqs_onnx.scoring.plan.memory import memory_of
from tqs_onnx.scoring.plan.perturbation import Perturbation
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_onnx.scoring.workers.local import _work
from tqs_passes.errors import InputError


@pytest.mark.parametrize("strategy", [Strategy("expose", 1), Strategy("rebuild", 1)])
def test_two_workers_score_as_one_process(tmp_path: Path, strategy: Strategy) -> None:
    source = opened(tmp_path, forecaster())
    here = scored(source, spec_of(), values(3, 16), strategy=strategy)
    there = scored(source, spec_of(), values(3, 16), strategy=strategy, workers=2)
    assert there.to_json() == here.to_json()


def _dies_once(task: Task) -> list[Finding]:
    """Work, in a worker; the first that rounds W2 dies, and leaves a file that says so."""
    if any(w.name == "W2" for r in task.todo.values() for w in r.weights):
        with contextlib.suppress(FileExistsError):
            Path(os.environ["TQS_TEST_DEAD"]).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return _work(task)


def test_a_worker_that_dies_costs_what_it_was_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(tmp_path, forecaster())
    here = scored(source, spec_of(), values(1, 16))
    monkeypatch.setenv("TQS_TEST_DEAD", str(tmp_path / "dead"))
    monkeypatch.setattr("tqs_onnx.scoring.workers.local._work", _dies_once)
    assert scored(source, spec_of(), values(1, 16), workers=2).to_json() == here.to_json()
    assert caplog.messages == ["a worker process died; the rest of its task runs again"]


def _dies(*_: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_kills_its_workers_is_given_up_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqs_onnx.scoring.workers.local._work", _dies)
    monkeypatch.setattr("tqs_onnx.scoring.workers.local.DEATHS", 2)
    with pytest.raises(InputError, match="2 times a worker process died in the same task") as caught:
        scored(opened(tmp_path, forecaster()), spec_of(), values(1, 16), workers=2)
    assert set(caught.value.where.split(", ")) <= {"W1", "b1", "W2", "b2", "decay"}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path, forecaster())


def _score(case: Case, *more: str) -> list[str]:
    data = ["--rollout", str(case.rollout), "--contexts", str(case.contexts), "--threads", "1"]
    return ["score", str(case.model), *data, "--out", str(case.model.parent / "run"), *more]


def test_a_dry_run_tells_what_it_would_take_and_writes_nothing(case: Case) -> None:
    done = CliRunner().invoke(cli, _score(case, "--dry-run", "--json"), catch_exceptions=False)
    found = json.loads(done.stdout)
    (probe,) = found["probes"]
    assert (probe["rollouts"], probe["sessions"], probe["chunk"]) == (15, 1, 3)
    assert found["time_s"] >= 15 * probe["rollout_s"] > 0
    assert probe["memory_bytes"] > 0
    assert not (case.model.parent / "run").exists()


def test_memory_counts_weights_once_and_a_half_and_each_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tmp_path, forecaster(width=16, hidden=48))
    weights = source.survey.weights
    contexts = Contexts({"x": values(3, 16)}, {})
    memory = memory_of(exposable(source.lifted, weights), spec_of(), contexts)
    assert memory.weights == 4 * sum(w.n_values for w in weights)
    # The fullest moment holds the state and two or three hidden vectors. Of a step there are the nominal values, and
    # the difference in float32 and in float64. The runtime takes twice of it.
    assert 4 * 2 * 48 <= memory.per_context / 2 - 4 * (1 + 4) * 16 <= 4 * 3 * 48
    assert memory.nominal == 4 * 4 * 16 * contexts.n_contexts  # four steps, once
    assert (
        memory.contexts == 3 * 4 * 16 * contexts.n_contexts
    )  # as read, one unit in the last place apart, as placed
    bounded = parse_spec(REPLACE.format(steps="4\nnon_negative = true"))
    assert memory_of(exposable(source.lifted, weights), bounded, contexts) == memory
    both = (Perturbation("both", weights),)  # a block of all weights: its perturbed values are there twice
    blocked = memory_of(exposable(source.lifted, weights), spec_of(), contexts, both)
    assert blocked.beside(1) - memory.beside(1) == 3 * memory.weights - int(1.5 * memory.weights)
    assert memory.prepared == int(0.5 * memory.weights)
    monkeypatch.setattr(
        "tqs_onnx.scoring.plan.memory.MOST_CONSTANT_BYTES", 0
    )  # then every weight is an input
    assert memory_of(exposable(source.lifted, weights), spec_of(), contexts, both).prepared == 0
    longer = memory_of(exposable(source.lifted, weights), spec_of(400), contexts)
    assert longer == replace(memory, nominal=100 * memory.nominal)
    least = memory.beside(3)
    assert longer.place(least, 3, on_host=True) == "file"
    assert longer.total(3, in_file=True) == memory.total(3, in_file=True) == least
    assert memory.held == int(1.05 * memory.nominal)  # what arenas lose between the steps
    assert memory.place(least + memory.held + 1, 3, on_host=True) == "device"


def test_contexts_are_chunked_to_the_memory_allowed(case: Case) -> None:
    # 2 × 48 or 3 × 48 hidden values and 160 of the trajectory, 4 bytes each, and 1.5 times 6.8 kB of weights
    done = CliRunner().invoke(
        cli, _score(case, "--dry-run", "--json", "--max-memory", "1"), catch_exceptions=False
    )
    assert json.loads(done.stdout)["probes"][0]["chunk"] == 3


def test_memory_that_holds_no_context_is_refused(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    with pytest.raises(InputError, match="more than `max_memory` allows"):
        scored(source, spec_of(), values(3, 16), max_memory=10_000)


def test_a_memory_bound_splits_the_contexts(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    contexts = Contexts({"x": values(3, 16)}, {})
    targets = [Perturbation(w.name, (w,)) for w in source.survey.weights]
    memory = memory_of(exposable(source.lifted, source.survey.weights), spec_of(), contexts, targets)
    whole = scored(source, spec_of(), values(3, 16))
    split = scored(source, spec_of(), values(3, 16), max_memory=memory.beside(2))
    # another batch size may round otherwise
    assert split.weights[0].gamma_task == pytest.approx(whole.weights[0].gamma_task, abs=1e-4)


def test_both_probes_are_kept_side_by_side_with_their_agreement(case: Case) -> None:
    done = CliRunner().invoke(cli, _score(case, "--probe", "both", "--json"), catch_exceptions=False)
    folder = case.model.parent / "run"
    kinds = [
        json.loads((folder / f).read_text())["probe"]["kind"] for f in ("scores.json", "scores.gauss.json")
    ]
    assert kinds == ["quant", "gauss"]
    assert -1 <= json.loads(done.stdout)["spearman"] <= 1


def test_the_agreement_is_printed(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_score(case, "--probe", "both")) == 0
    assert "Spearman of the quant and the gauss ranking: " in capsys.readouterr().out


def test_every_option_of_a_sweep_runs_together(case: Case) -> None:
    options = (
        "--per-channel --blocks nodes:2 --block-score mean --early-stop 0.01 --early-window 2 --group-test"
    )
    more = "--dead-below -50 --dead-at-minimum --probe gauss --draws 2 --probe-bits 4"
    done = CliRunner().invoke(cli, _score(case, *options.split(), *more.split()), catch_exceptions=False)
    assert done.exit_code == 0
    with sqlite3.connect(case.model.parent / "run" / "sweep.sqlite") as database:
        facts = json.loads(database.execute("SELECT facts FROM job").fetchone()[0])
    database.close()
    assert facts["early_stop"] == {"tolerance": 0.01, "window": 2}
    assert (facts["group_test"], facts["injection"]) == (True, "expose")


def test_scores_have_the_same_bits_wherever_the_nominal_rollout_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tmp_path, forecaster())
    contexts = Contexts({"x": values(3, 16)}, {})
    targets = [Perturbation(w.name, (w,)) for w in source.survey.weights]
    memory = memory_of(exposable(source.lifted, source.survey.weights), spec_of(), contexts, targets)
    whole = scored(source, spec_of(), values(3, 16))
    placed: list[str] = []
    plain = held.place_of

    def told(*sizes: int, **more: object) -> str:
        placed.append(plain(*sizes, **more))  # type: ignore[arg-type]
        return placed[-1]

    monkeypatch.setattr(held, "place_of", told)
    bounded = scored(source, spec_of(), values(3, 16), max_memory=memory.beside(3))
    assert set(placed) == {"file"}
    assert bounded.to_json() == whole.to_json()
