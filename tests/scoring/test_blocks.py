"""Weights put together into blocks, and what a block scores."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.rollouts import forecaster, model, opened, scored, spec_of, values
from tqs_onnx.scoring.plan.blocks import blocks_of
from tqs_onnx.scoring.plan.options import Blocks
from tqs_onnx.scoring.scores import Scores
from tqs_passes.errors import InputError


def residual() -> onnx.ModelProto:
    """Return x' = h + tanh(h · B) · C with h = x + tanh(x · A): two residual branches and a scale behind them."""
    graph = """(float[b, 8] x) => (float[b, 8] y) {
      p = MatMul(x, enc.A)  q = Add(p, enc.a)  r = Tanh(q)  h = Add(x, r)
      s = MatMul(h, dec.B)  t = Tanh(s)  u = MatMul(t, dec.C)  v = Add(h, u)  y = Mul(v, out) }"""
    graph = graph.replace("enc.A", "encA").replace("enc.a", "enca").replace("dec.B", "decB")
    weights = {
        "encA": values(8, 8, seed=1, scale=0.2),
        "enca": values(8, seed=2, scale=0.1),
        "decB": values(8, 8, seed=3, scale=0.2),
        "decC": values(8, 8, seed=4, scale=0.2),
        "out": np.full(8, 0.8, np.float32),
    }
    return model(graph.replace("dec.C", "decC"), weights)


def _members(folder: Path, rule: str) -> dict[str, list[str]]:
    source = opened(folder, residual())
    blocks = blocks_of(source.lifted, source.survey.weights, rule)
    return {b.name: [w.name for w in b.weights] for b in blocks}


def test_a_pattern_groups_what_it_matches_alike_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    assert _members(tmp_path, "pattern:^(enc|dec)") == {
        "enc": ["encA", "enca"],
        "dec": ["decB", "decC"],
        "out": ["out"],
    }


def test_an_empty_match_and_an_unmatched_weight_stay_alone(tmp_path: Path) -> None:
    assert _members(tmp_path, "pattern:^(enc)?") == {
        "enc": ["encA", "enca"],
        "decB": ["decB"],
        "decC": ["decC"],
        "out": ["out"],
    }


def test_a_digit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a rule"):
        _members(tmp_path, "nodes:²")


def test_node_ranges_take_weights_in_the_order_they_are_read(tmp_path: Path) -> None:
    assert _members(tmp_path, "nodes:2") == {
        "block000": ["encA", "enca"],
        "block001": ["decB", "decC"],
        "block002": ["out"],
    }


def test_ranges_of_nodes_may_be_named(tmp_path: Path) -> None:
    assert _members(tmp_path, "nodes:0-1,2-6") == {
        "nodes0-1": ["encA", "enca"],
        "nodes2-6": ["decB", "decC"],
        "out": ["out"],
    }


@pytest.mark.parametrize("ranges", ["3-1", "0-2,2-3", "4-5,0-1"])
def test_ranges_that_overlap_or_run_backwards_are_refused(tmp_path: Path, ranges: str) -> None:
    with pytest.raises(InputError, match="runs backwards or into the next range"):
        _members(tmp_path, f"nodes:{ranges}")


def test_ranges_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no weight"):
        _members(tmp_path, "nodes:100-200")


def test_stored_ranges_take_weights_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert _members(tmp_path, "stored:3") == {
        "block000": ["encA", "enca", "decB"],
        "block001": ["decC", "out"],
    }


def test_chains_end_at_the_adds_of_two_fed_values(tmp_path: Path) -> None:
    assert _members(tmp_path, "auto") == {
        "chain000": ["encA", "enca"],
        "chain001": ["decB", "decC"],
        "chain002": ["out"],
    }


def test_a_prefix_is_cut_at_dots_and_slashes() -> None:
    from tqs_onnx.scoring.plan.blocks import _prefix

    assert [_prefix(label, 2) for label in ("a.b.c", "/a/b/c", "a", "a.b")] == ["a.b", "a.b", "a", "a.b"]


@pytest.mark.parametrize(
    "rule", ["pattern:", "nodes:0", "nodes:x", "prefix:", "chains", "pattern:(", "pattern:no"]
)
def test_a_rule_that_is_none_is_refused(tmp_path: Path, rule: str) -> None:
    with pytest.raises(InputError, match=r"score\.blocks\.rule"):
        _members(tmp_path, rule)


def _scored(folder: Path, blocks: Blocks | None) -> Scores:
    return scored(opened(folder, residual()), spec_of(), values(3, 8), blocks=blocks, response_bits=())


def test_every_member_of_a_joint_block_has_the_block_s_score(tmp_path: Path) -> None:
    rows = {w.weight: w for w in _scored(tmp_path, Blocks("nodes:2")).weights}
    assert rows["encA"].gamma_task == rows["enca"].gamma_task
    assert rows["encA"].gamma_task != rows["decB"].gamma_task
    assert rows["encA"].block == "block000"


def test_a_joint_perturbation_has_the_energy_of_all_its_members(tmp_path: Path) -> None:
    alone = {w.weight: w for w in _scored(tmp_path, None).weights}
    joint = {w.weight: w for w in _scored(tmp_path, Blocks("nodes:2")).weights}
    norm = np.hypot(alone["decB"].delta_norm, alone["decC"].delta_norm)
    # sums of float64 squares in another order
    assert joint["decB"].delta_norm == pytest.approx(norm, rel=1e-12)


def test_a_mean_block_has_the_mean_of_its_members_own_scores(tmp_path: Path) -> None:
    alone = {w.weight: w for w in _scored(tmp_path, None).weights}
    mean = {w.weight: w for w in _scored(tmp_path, Blocks("nodes:2", "mean")).weights}
    expected = ((alone["decB"].gamma_task or 0) + (alone["decC"].gamma_task or 0)) / 2
    # one rounding of a float64 mean
    assert mean["decB"].gamma_task == pytest.approx(expected, rel=1e-12)
    assert mean["decB"].gamma_task == mean["decC"].gamma_task


def test_a_block_of_one_weight_scores_as_the_weight_does(tmp_path: Path) -> None:
    alone = {w.weight: w for w in _scored(tmp_path, None).weights}
    joint = {w.weight: w for w in _scored(tmp_path, Blocks("nodes:2")).weights}
    assert joint["out"].gamma == alone["out"].gamma


def test_blocks_are_a_matter_of_the_graph_alone(tmp_path: Path) -> None:
    source = opened(tmp_path, forecaster())
    shuffled = tuple(reversed(source.survey.weights))
    first = blocks_of(source.lifted, source.survey.weights, "auto")
    again = blocks_of(source.lifted, shuffled, "auto")
    assert {b.name: {w.name for w in b.weights} for b in first} == {
        b.name: {w.name for w in b.weights} for b in again
    }


def test_the_table_tells_how_far_each_variable_is_moved(tmp_path: Path) -> None:
    scores = _scored(tmp_path, None)
    rows = list(csv.DictReader(io.StringIO(scores.to_csv())))
    alive = [row for row in rows if row["status"] == "alive"]
    assert len(alive) > 2
    for row in alive:  # one variable, so its amplification is that of the whole
        assert float(row["amplification[y]"]) == pytest.approx(float(row["amplification"]))
