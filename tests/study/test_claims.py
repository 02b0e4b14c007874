"""The figures behind models/zoo/RESULTS.md, from scores whose answers are known."""

from __future__ import annotations

import pytest

from tools.study import claims
from tools.study.zoo import ZOO
from tqs_onnx.scoring.plan.probe import ProbeKind
from tqs_onnx.scoring.scores import ProbeFacts, Scores, Status, WeightScore
from tqs_passes.weights import Role

ROLES = (Role.INPUT, Role.ATTENTION, Role.FEED_FORWARD, Role.OUTPUT)


def scores(*gammas: float | None, shape: tuple[int, ...] = (4, 4)) -> Scores:
    """Hold a weight for each γ_task, roles in turn; None: dead."""
    weights = tuple(
        WeightScore(
            weight=f"w{i}",
            label=f"w{i}",
            role=ROLES[i % len(ROLES)],
            shape=shape,
            status=Status.DEAD if gamma is None else Status.ALIVE,
            gamma_task=gamma,
        )
        for i, gamma in enumerate(gammas)
    )
    probe = ProbeFacts(kind=ProbeKind.QUANT, bits=6, response_bits=(), per_channel=False, draws=1, seed=0)
    return Scores(
        source_sha256="",
        rollout_sha256="",
        contexts_sha256="",
        provider="cpu",
        runtime="",
        probe=probe,
        horizons=(1,),
        units="std",
        sigma={},
        n_contexts=1,
        n_values=1,
        noise_floor=0.0,
        weights=weights,
    )


def test_the_share_of_equal_steps_is_known() -> None:
    # Shifts 9 … 0 sum up to 45.
    assert claims.share(scores(*range(10)), 0.1) == pytest.approx(9 / 45)
    assert claims.share(scores(*range(10)), 0.5) == pytest.approx(35 / 45)


def test_dead_weights_have_no_share() -> None:
    assert claims.share(scores(*range(10), None, None), 0.1) == claims.share(scores(*range(10)), 0.1)


def test_percentiles_run_from_0_to_100() -> None:
    assert claims.percentiles(scores(3.0, 1.0, 2.0)) == {"w0": 100.0, "w1": 0.0, "w2": 50.0}


def test_io_leads_when_both_ends_stand_above_the_body() -> None:
    assert claims.io_leads(claims.by_role(scores(3.0, 1.0, 2.0, 4.0)))
    assert not claims.io_leads(claims.by_role(scores(1.5, 1.0, 2.0, 4.0)))


def test_vectors_are_left_out_of_the_matrices() -> None:
    assert claims.by_role(scores(1.0, 2.0, shape=(4, 1)), matrices=True) == {}


def test_blocks_are_means_of_weights_in_a_row() -> None:
    one, other = scores(1.0, 3.0, 5.0, 5.0, 9.0, 7.0), scores(3.0, 1.0, 5.0, None, 7.0, 9.0)
    assert claims.mean_agreement(one, other, size=2) == (pytest.approx(1.0), 3)


def test_the_weakest_alive_weights_come_first() -> None:
    assert claims.weakest(scores(3.0, 1.0, 2.0, None), 2) == ["w1", "w2"]
    assert claims.insensitive([scores(3.0, None)]) == {"w1": "w1"}


def test_the_results_state_every_claim() -> None:
    text = (ZOO / "RESULTS.md").read_text(encoding="utf-8")
    for claim in ("I/O modules", "transfers between sets", "top 10 %", "gauss and quant", "dead weights"):
        line = next(row for row in text.splitlines() if row.startswith("| ") and claim in row)
        assert "**true**" in line or "**false**" in line
