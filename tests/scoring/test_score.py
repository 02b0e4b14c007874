"""Scores of models whose answer is known: by matrix algebra, or because a weight cannot matter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import bed_of, forecaster, linear, model, motley, opened, scored, spec_of, values
from tqs_onnx.inputs.source import open_source, require_scorable
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.trajectory import NonFiniteError
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind, perturbed
from tqs_onnx.scoring.score import score
from tqs_onnx.scoring.scores import Scores, Status, WeightScore, read_scores
from tqs_passes.errors import InputError
from tqs_passes.weights import Survey

GAUSS = Probe(ProbeKind.GAUSS, draws=2, seed=7)
# Float32 rollouts of a few steps: 1e-6 of the state, some 1e-4 of differences a hundred times smaller, squared.
ROLLOUT = 2e-3


def of(scores: Scores, name: str) -> WeightScore:
    return next(s for s in scores.weights if s.weight == name)


def rolled(x: np.ndarray, matrix: np.ndarray, steps: int) -> np.ndarray:
    """[context, time, n] of x' = x · A, in float64."""
    states = []
    x = x.astype(np.float64)
    for _ in range(steps):
        x = x @ matrix.astype(np.float64)
        states.append(x)
    return np.stack(states, 1)


MATRIX = values(5, 5, seed=3, scale=0.45)
X = values(4, 5, seed=4)


@pytest.mark.parametrize("probe", [Probe(), GAUSS])
def test_the_scores_of_a_linear_model_are_those_of_its_rollouts_in_numpy(
    tmp_path: Path, probe: Probe
) -> None:
    score = of(scored(opened(tmp_path, linear(MATRIX)), spec_of(6), X, probe, units="raw"), "A")
    squares, deltas = [], []
    for draw in range(probe.n_draws):
        moved, delta_sq = perturbed(MATRIX, probe, "A", draw, None)
        squares.append(np.sum((rolled(X, moved, 6) - rolled(X, MATRIX, 6)) ** 2, axis=(1, 2)))
        deltas.append(delta_sq)
    ratios = np.array(squares) / np.array(deltas)[:, None]
    assert score.status is Status.ALIVE
    assert score.amplification == pytest.approx(ratios.mean(), rel=ROLLOUT)
    assert score.gamma_task == pytest.approx(np.log(ratios.mean()) / 6, rel=ROLLOUT)
    assert score.a_max == pytest.approx(np.sqrt(ratios.max()), rel=ROLLOUT)
    assert score.gamma is not None
    assert score.gamma[-1] == pytest.approx(np.mean(np.log(np.sqrt(ratios))) / 6, rel=ROLLOUT)
    assert score.delta_norm == pytest.approx(np.sqrt(np.mean(deltas)), rel=1e-9)


def test_the_amplification_of_a_scalar_recurrence_is_that_worked_out_by_hand(tmp_path: Path) -> None:
    # x' = a·x from x = 1: Δ of step t is (a + δ)^t − a^t. a = (2, 1), one scale 2/31: 1 is rounded to 16·2/31 = 32/31.
    proto = model("(float[b, 2] x) => (float[b, 2] y) { y = Mul(x, a) }", {"a": np.array([2, 1], np.float32)})
    score = of(scored(opened(tmp_path, proto), spec_of(2), np.ones((1, 2), np.float32), units="raw"), "a")
    delta = 1 / 31
    by_hand = (delta**2 + ((1 + delta) ** 2 - 1) ** 2) / delta**2
    # 32/31 in float32 is off by 6e-8, 2e-6 of δ.
    assert score.amplification == pytest.approx(by_hand, rel=2e-5)


def test_units_of_std_divide_by_the_squared_deviation(tmp_path: Path) -> None:
    source = opened(tmp_path, linear(MATRIX))
    raw, std = (scored(source, spec_of(3), X, units=u) for u in ("raw", "std"))
    assert std.sigma["y"] == pytest.approx(float(X.std()), rel=1e-6)
    expected = (of(raw, "A").amplification or 0.0) / std.sigma["y"] ** 2
    assert of(std, "A").amplification == pytest.approx(expected, rel=1e-9)


def test_the_response_is_measured_at_every_width_and_ordered_by_size(tmp_path: Path) -> None:
    points = of(scored(opened(tmp_path, linear(MATRIX)), spec_of(3), X, units="raw"), "A").response
    expected = sorted(perturbed(MATRIX, Probe(bits=b), "A", 0, None)[1] for b in (6, 4, 2))
    assert [p.delta_sq for p in points] == expected
    two = perturbed(MATRIX, Probe(bits=2), "A", 0, None)[0]
    energy = np.mean(np.sum((rolled(X, two, 3) - rolled(X, MATRIX, 3)) ** 2, axis=(1, 2)))
    assert points[-1].amplification == pytest.approx(energy / expected[-1], rel=ROLLOUT)


@pytest.mark.parametrize(
    ("name", "status"),
    [("W", "alive"), ("D", "dead"), ("G", "unprobed"), ("U", "unstable"), ("O", "off-trajectory")],
)
def test_every_weight_is_what_it_is(tmp_path: Path, name: str, status: str) -> None:
    score = of(scored(opened(tmp_path, motley()), spec_of(), values(3, 6)), name)
    assert score.status.value == status
    assert (score.gamma_task is not None) == (status == "alive")


def test_a_weight_whose_probe_stays_finite_is_not_unstable(tmp_path: Path) -> None:
    scores = scored(opened(tmp_path, motley(unstable=False)), spec_of(), values(3, 6), response_bits=())
    assert of(scores, "U").status is Status.DEAD


def test_a_weight_that_reaches_no_output_is_dead(tmp_path: Path) -> None:
    graph = "(float[b, 5] x) => (float[b, 5] y) { y = MatMul(x, A) spare = MatMul(x, B) }"
    source = opened(tmp_path, model(graph, {"A": MATRIX, "B": values(5, 5, seed=8)}))
    assert of(scored(source, spec_of(), X), "B").status is Status.DEAD


def test_a_weight_that_acts_through_the_feedback_alone_is_alive(tmp_path: Path) -> None:
    graph = "(float[b, 5] x) => (float[b, 5] y, float[b, 5] z) { y = MatMul(x, A) z = MatMul(x, C) }"
    source = opened(tmp_path, model(graph, {"A": MATRIX, "C": values(5, 5, seed=8)}))
    spec = spec_of()
    shown = spec.model_copy(update={"trajectory": spec.trajectory.model_copy(update={"outputs": ("z",)})})
    row = of(scored(source, shown, X), "A")
    assert row.status is Status.ALIVE
    # at the first step it moved nothing yet: there is no number, and growth is that of the steps after
    assert row.gamma is not None
    assert row.convergence is not None
    assert (row.gamma[0], row.convergence[0]) == (None, None)
    assert abs(row.growth or 0.0) < 5.0


@pytest.mark.parametrize("probe", [Probe(), GAUSS])
def test_the_order_of_the_weights_changes_no_score(tmp_path: Path, probe: Probe) -> None:
    source = opened(tmp_path, forecaster())
    shuffled = replace(source, survey=Survey(source.survey.weights[::-1], source.survey.excluded))
    forward, backward = (scored(s, spec_of(), values(2, 16), probe) for s in (source, shuffled))
    assert forward.weights == backward.weights[::-1]


def test_the_same_seed_gives_the_same_scores_and_another_gives_others(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    first, again, other = (
        scored(source, spec_of(), values(2, 16), replace(GAUSS, seed=s)) for s in (7, 7, 8)
    )
    assert first.to_json() == again.to_json()
    assert first.weights != other.weights


def test_progress_counts_every_weight(tmp_path: Path) -> None:
    source, seen = opened(tmp_path, motley()), []
    contexts = Contexts({"x": values(1, 6)}, {})
    score(bed_of(source, spec_of(), contexts), "", progress=lambda *t: seen.append(t))
    assert [(done, total) for done, total, _ in seen] == [(i, 5) for i in range(1, 6)]
    assert {label for *_, label in seen} == {"W", "D", "G", "U", "O"}


def test_a_horizon_beyond_the_rollout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="horizon 9 lies beyond the 4 steps"):
        scored(opened(tmp_path, linear(MATRIX)), spec_of(4), X, horizons=(1, 9))


def test_a_nominal_rollout_that_is_not_finite_names_its_step(tmp_path: Path) -> None:
    huge = np.eye(5, dtype=np.float32) * 1e15
    with pytest.raises(NonFiniteError, match="NaN or infinite") as caught:
        scored(opened(tmp_path, linear(huge)), spec_of(6), np.ones((1, 5), np.float32))
    assert caught.value.step == 3  # 1e15 ** 3 is above the largest float32, 3.4e38


def test_a_graph_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    graph = "(float[b, 5] x) => (float[b, 5] y) { n = RandomNormalLike(x) p = Add(x, n) y = MatMul(p, A) }"
    with pytest.raises(InputError, match=r"RandomNormalLike .* draws random numbers"):
        require_scorable(opened(tmp_path, model(graph, {"A": MATRIX})))


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = scored(opened(tmp_path, motley()), spec_of(), values(2, 6))
    (tmp_path / "scores.json").write_text(scores.to_json())
    assert read_scores(tmp_path / "scores.json") == scores


def test_the_table_of_scores_has_a_row_per_weight(tmp_path: Path) -> None:
    scores = scored(opened(tmp_path, motley()), spec_of(), values(2, 6))
    rows = [line.split(",") for line in scores.to_csv().splitlines()]
    assert [r[0] for r in rows] == ["weight", "W", "D", "G", "U", "O"]
    assert [c for c in rows[0] if c.startswith("gamma_T")] == ["gamma_T1", "gamma_T2", "gamma_T4"]
    assert float(rows[1][rows[0].index("gamma_task")]) == of(scores, "W").gamma_task


@pytest.mark.parametrize(
    ("text", "said"), [("{}", "Field required"), ("no", "Invalid JSON"), ('{"version": 2}', "version")]
)
def test_a_file_that_is_no_scores_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_scores(tmp_path / "s.json")


def test_two_external_files_give_one_digest(tmp_path: Path) -> None:
    import onnx

    onnx.save(
        linear(values(40, 40)),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
    )
    first = open_source(tmp_path / "m.onnx").sha256
    (tmp_path / "w.bin").write_bytes(bytes(6400))
    assert open_source(tmp_path / "m.onnx").sha256 != first
