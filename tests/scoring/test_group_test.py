"""Group tests for the dead, floors, early stop, and how many sessions share the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import REPLACE, bed_of, forecaster, linear, model, opened, scored, spec_of, values
from tqs_onnx.rollout.calls import Calls
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.scoring.judge import Judged, settle_minimum
from tqs_onnx.scoring.measure.gamma import gammas
from tqs_onnx.scoring.measure.store import StoppedError
from tqs_onnx.scoring.measure.task import parts_of, tasks_of
from tqs_onnx.scoring.plan.group_test import families, settle
from tqs_onnx.scoring.plan.options import EarlyStop
from tqs_onnx.scoring.plan.perturbation import Perturbation
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind, perturbed
from tqs_onnx.scoring.score import ScoreOptions, score
from tqs_onnx.scoring.scores import Scores, Status, spearman
from tqs_passes.errors import InputError


def modulated(n: int = 8, alive: tuple[int, ...] = ()) -> onnx.ModelProto:
    """Return x' = 0.9 x · W + Σ gate_i · mod_i, whose modulators mod_i are dead but for those in `alive`."""
    lines, last = [], "p"
    for i in range(n):
        gate = "x" if i in alive else "none"
        lines.append(f"m{i} = Mul({gate}, mod{i})  s{i} = Add({last}, m{i})")
        last = f"s{i}"
    body = "  ".join(lines)
    graph = f"(float[b, 6] x) => (float[b, 6] y) {{ none = Sub(x, x)  p = MatMul(x, W)  {body}  y = Tanh({last}) }}"
    weights = {f"mod{i}": values(6, seed=20 + i) for i in range(n)}
    return model(graph, {"W": values(6, 6, seed=1, scale=0.3), **weights})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count rollouts, whose contexts are one chunk."""
    calls: list[int] = []
    plain = Calls.seen

    def counting(self: Calls, *given: object) -> object:
        calls.append(1)
        return plain(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Calls, "seen", counting)
    return calls


def _statuses(scores: Scores) -> dict[str, Status]:
    return {w.weight: w.status for w in scores.weights}


def test_weights_alike_in_all_but_numbers_are_a_family(tmp_path: Path) -> None:
    source = opened(tmp_path, modulated())
    targets = [Perturbation(w.name, (w,)) for w in source.survey.weights]
    assert [len(f) for f in families(targets)] == [1, 8]


def test_settling_tests_halves_where_something_moves() -> None:
    tested: list[list[int]] = []

    def still(some: list[int]) -> bool:
        tested.append(list(some))
        return 5 not in some

    assert settle([1, 2, 3, 4, 5, 6, 7, 8], still) == ((1, 2, 3, 4, 7, 8), (5, 6))  # type: ignore[arg-type]
    assert len(tested) == 5


def test_a_dead_family_is_settled_with_few_rollouts(tmp_path: Path, counted: list[int]) -> None:
    source = opened(tmp_path, modulated())
    plain = scored(source, spec_of(), values(2, 6), response_bits=())
    without = len(counted)
    counted.clear()
    tested = scored(source, spec_of(), values(2, 6), response_bits=(), group_test=True)
    assert _statuses(tested) == _statuses(plain)
    # nominal twice, from a nudged state, W, one modulator; its still-test and the joint test are two rollouts each
    assert (without, len(counted)) == (3 + 9, 3 + 2 + 4)


def test_an_alive_member_of_a_dead_family_is_found_and_scored_as_by_itself(tmp_path: Path) -> None:
    source = opened(tmp_path, modulated(alive=(5,)))
    plain = scored(source, spec_of(), values(2, 6))
    tested = scored(source, spec_of(), values(2, 6), group_test=True)
    assert _statuses(tested)["mod5"] is Status.ALIVE
    assert [w.gamma for w in tested.weights] == [w.gamma for w in plain.weights]


def test_an_early_stop_saves_calls_and_keeps_the_score(tmp_path: Path) -> None:
    matrix = (0.98 * np.eye(4)).astype(np.float32)
    source = opened(tmp_path, linear(matrix + values(4, 4, scale=1e-3)))
    whole = scored(source, spec_of(60), values(3, 4))
    early = scored(source, spec_of(60), values(3, 4), early_stop=EarlyStop(0.01, 3))
    assert whole.rollouts_saved == 0.0
    assert early.rollouts_saved > 0.1
    (one,), (other,) = whole.weights, early.weights
    assert one.gamma_task is not None
    assert other.gamma_task is not None
    assert 0 < other.steps < 60 == one.steps
    # the rate drifts on by at most a few tolerances after the window
    assert abs(one.gamma_task - other.gamma_task) < 0.1


def test_an_early_stop_that_never_comes_changes_nothing(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    whole = scored(source, spec_of(5), values(2, 16))
    early = scored(source, spec_of(5), values(2, 16), early_stop=EarlyStop(1e-12, 4))
    assert early.weights == whole.weights


def test_chunks_after_the_first_stop_where_it_did(tmp_path: Path) -> None:
    matrix = (0.98 * np.eye(4)).astype(np.float32) + values(4, 4, scale=1e-3)
    source = opened(tmp_path, linear(matrix))
    early = scored(source, spec_of(60), values(3, 4), early_stop=EarlyStop(0.01), batch=2)
    assert early.weights[0].gamma_task is not None
    assert early.rollouts_saved > 0.0


def test_what_moves_less_than_rounding_is_below_the_floor_and_has_no_number(tmp_path: Path) -> None:
    graph = """(float[b, 6] x) => (float[b, 6] y) {
      p = MatMul(x, W)  w = Mul(W, tiny)  d = MatMul(x, w)  e = Mul(faint, tiny)  q = Add(p, e)  y = Add(q, d) }"""
    graph = graph.replace("w = Mul(W, tiny)  d = MatMul(x, w)  ", "").replace("y = Add(q, d)", "y = Tanh(q)")
    weights = {
        "W": values(6, 6, seed=1, scale=0.3),
        "faint": values(6, seed=2),
        "tiny": np.full(1, 3e-7, np.float32),
    }
    for response_bits in ((), (4, 2)):  # what a coarser probe moves lends the first no number
        source = opened(tmp_path / str(len(response_bits)), model(graph, weights))
        scores = scored(source, spec_of(), values(2, 6), response_bits=response_bits)
        row = next(w for w in scores.weights if w.weight == "faint")
        assert scores.rounding_floor > scores.noise_floor
        assert row.status is Status.BELOW_FLOOR
        assert (row.gamma, row.gamma_task, row.amplification) == (None, None, None)
        assert all(p.amplification > 0 for p in row.response)


def test_raw_units_are_the_plain_norm_over_all_values(tmp_path: Path) -> None:
    graph = "(float[b, 4] x) => (float[b, 4] y, float[b, 1] z) { y = MatMul(x, A)  z = MatMul(x, B) }"
    weights = {"A": values(4, 4, seed=1, scale=0.4), "B": values(4, 1, seed=2)}
    source = opened(tmp_path, model(graph, weights))
    spec = spec_of(1)
    both = spec.model_copy(update={"trajectory": spec.trajectory.model_copy(update={"outputs": ("y", "z")})})
    x = values(1, 4, seed=3)
    row = scored(source, both, x, units="raw", response_bits=()).weights[0]
    moved, delta_sq = perturbed(weights["A"], Probe(), "A", 0, 1)
    change = x.astype(np.float64) @ (moved.astype(np.float64) - weights["A"])
    assert row.amplification == pytest.approx(float(np.sum(change**2)) / delta_sq, rel=1e-4)


def test_an_early_stop_does_not_come_before_a_quarter_of_the_steps(tmp_path: Path) -> None:
    source = opened(tmp_path, linear((0.98 * np.eye(4)).astype(np.float32) + values(4, 4, scale=1e-3)))
    early = scored(source, spec_of(40), values(3, 4), early_stop=EarlyStop(1e3, 1))
    assert early.weights[0].steps == 10


def test_what_is_averaged_as_a_whole_cannot_be_stopped_early(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    spec = spec_of()
    mirrored = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"flip_invariant": True})})
    with pytest.raises(InputError, match="cannot be stopped early"):
        scored(source, mirrored, values(2, 16), early_stop=EarlyStop(0.01))


def test_a_resumed_group_test_scores_like_an_uninterrupted_one(tmp_path: Path) -> None:
    source = opened(tmp_path, modulated(alive=(1, 4)))
    options = ScoreOptions(response_bits=(), group_test=True)
    contexts = Contexts({"x": values(2, 6)}, {})

    def run(store: Path, stop_at: int | None) -> str:
        def progress(done: int, total: int, label: str) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        bed = bed_of(source, spec_of(), contexts)
        return score(bed, "", options, progress, store=store).to_json()

    whole = run(tmp_path / "whole.sqlite", None)
    for stop_at in (1, 2, 3, 5):
        store = tmp_path / f"{stop_at}.sqlite"
        with pytest.raises(StoppedError):
            run(store, stop_at)
        assert run(store, None) == whole


def test_scores_at_or_below_a_threshold_are_dead(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    plain = scored(source, spec_of(), values(2, 16))
    rates = sorted(w.gamma_task for w in plain.weights if w.gamma_task is not None)
    cut = scored(source, spec_of(), values(2, 16), dead_below=rates[1])
    assert sum(w.status is Status.DEAD for w in cut.weights) == 2


def test_the_lowest_score_is_not_dead_for_being_the_lowest(tmp_path: Path) -> None:
    scores = scored(opened(tmp_path, forecaster()), spec_of(), values(2, 16), dead_at_minimum=True)
    assert all(w.status is Status.ALIVE for w in scores.weights)


def test_each_variable_has_an_amplification_of_its_own(tmp_path: Path) -> None:
    table = '[[variable]]\nname = "{}"\noutput = "y"\naxis = 1\nindex = {}\n'
    more = table.format("a", 0) + table.format("b", 1)
    source = opened(tmp_path, model("(float[b, 2] x) => (float[b, 2] y) { y = Mul(x, D) }", {"D": values(2)}))
    scores = scored(source, spec_of(2, more), values(3, 2), units="raw", response_bits=())
    row = scores.weights[0]
    assert set(row.variables) == {"a", "b"}
    # variables of equal size count alike: the parts sum to the whole
    assert sum(row.variables.values()) == pytest.approx(row.amplification, rel=1e-9)


def test_convergence_ratios_are_the_horizons_over_the_last(tmp_path: Path) -> None:
    row = scored(opened(tmp_path, forecaster()), spec_of(), values(2, 16)).weights[0]
    assert row.gamma is not None
    assert row.convergence == tuple(g / row.gamma[-1] for g in row.gamma)


def test_the_standard_error_falls_with_the_draws(tmp_path: Path) -> None:
    def error(draws: int) -> float:
        probe = Probe(kind=ProbeKind.GAUSS, draws=draws)
        scores = scored(opened(tmp_path, forecaster()), spec_of(), values(1, 16), probe, response_bits=())
        return scores.weights[0].gamma_task_stderr or 0.0

    assert error(1) == 0.0
    # 1/sqrt(n): a sixteenfold sample has a quarter of the error, here within a factor of two
    assert error(4) / 8 < error(64) < error(4) / 2


def test_a_linear_model_is_called_linear_and_a_saturated_one_is_not(tmp_path: Path) -> None:
    matrix = values(6, 6, seed=3, scale=0.3)
    straight = opened(tmp_path / "a", linear(matrix))
    row = scored(straight, spec_of(1), values(4, 6)).weights[0]
    assert row.nonlinearity == pytest.approx(1.0, abs=0.5)  # other widths round in other directions
    assert row.is_linear is True
    # y = sign-like of a product with large weights: a coarse error moves it no further than a fine one
    graph = "(float[b, 6] x) => (float[b, 6] y) { p = MatMul(x, W)  y = Tanh(p) }"
    steep = opened(tmp_path / "b", model(graph, {"W": values(6, 6, seed=3, scale=300.0)}))
    assert scored(steep, spec_of(1), values(4, 6)).weights[0].is_linear is False


def test_two_that_tie_at_the_minimum_below_the_floor_are_dead_one_alone_is_not() -> None:
    def judged(rate: float, status: Status) -> Judged:
        energy = np.exp(np.full((1, 1, 1), rate))
        return Judged(status, gammas(energy, np.array([1.0]), (1,)))

    low, high = judged(-9.0, Status.BELOW_FLOOR), judged(1.0, Status.ALIVE)
    settled = settle_minimum({"a": low, "b": low, "c": high})
    assert [settled[n].status for n in "abc"] == [Status.DEAD, Status.DEAD, Status.ALIVE]
    alone = settle_minimum({"a": low, "c": high})
    assert [alone[n].status for n in "ac"] == [Status.BELOW_FLOOR, Status.ALIVE]
    alive = settle_minimum({"a": judged(-9.0, Status.ALIVE), "b": judged(-9.0, Status.ALIVE), "c": high})
    assert all(j.status is Status.ALIVE for j in alive.values())


def test_spearman_is_that_of_the_ranks(tmp_path: Path) -> None:
    plain = scored(opened(tmp_path, forecaster()), spec_of(), values(2, 16))
    rates = [w.gamma_task for w in plain.weights]
    n = len(rates)

    def with_rates(order: list[int]) -> Scores:
        rows = tuple(
            w.model_copy(update={"gamma_task": float(r)}) for w, r in zip(plain.weights, order, strict=True)
        )
        return plain.model_copy(update={"weights": rows})

    one = with_rates(list(range(n)))
    assert spearman(one, with_rates([10**i for i in range(n)])) == pytest.approx(1.0)
    assert spearman(one, with_rates(list(range(n))[::-1])) == pytest.approx(-1.0)
    swapped = [1, 0, *range(2, n)]
    assert spearman(one, with_rates(swapped)) == pytest.approx(1 - 6 * 2 / (n * (n * n - 1)))


@pytest.mark.parametrize("cut", ["workers", "parts"])
def test_group_tests_settle_the_same_whoever_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    source = opened(tmp_path, modulated(alive=(3,)))
    here = scored(source, spec_of(), values(2, 6), group_test=True)
    if cut == "workers":
        there = scored(source, spec_of(), values(2, 6), group_test=True, workers=2)
    else:
        monkeypatch.setattr("tqs_onnx.scoring.score.tasks_of", lambda *a: parts_of(a[0], tasks_of(*a), 100))
        there = scored(source, spec_of(), values(2, 6), group_test=True)
    assert here.rollouts_saved > 0.0
    assert there.to_json() == here.to_json()


def test_an_early_stop_watches_no_step_beyond_the_length(tmp_path: Path) -> None:
    text = REPLACE.replace("steps = {steps}", "steps = 6\nlength = 5") + "time_axis = 1\n"
    spec = parse_spec(text)
    proto = model(
        "(float[b, 2, 4] x) => (float[b, 2, 4] y) { p = MatMul(x, W)  y = Tanh(p) }",
        {"W": values(4, 4, scale=0.4)},
    )
    source = opened(tmp_path, proto)
    never = scored(source, spec, values(2, 2, 4), early_stop=EarlyStop(0.0))
    assert never.weights[0].gamma_task == scored(source, spec, values(2, 2, 4)).weights[0].gamma_task
