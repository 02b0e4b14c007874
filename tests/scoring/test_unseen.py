"""What no context ran is unseen, not dead: named, and kept at 8 bits or more; what has no effect stays dead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from tests.models import run
from tests.rollouts import Floats, bed_of, motley, opened, scored, spec_of, values, write_case
from tqs_onnx.allocation.costing import PlanOptions
from tqs_onnx.allocation.plan_within import plan_within
from tqs_onnx.allocation.request import request_for
from tqs_onnx.allocation.tier_set import TierSet, parse_rule
from tqs_onnx.cli.main import main
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.scoring.plan.options import Blocks, ScoreOptions
from tqs_onnx.scoring.score import score
from tqs_onnx.scoring.scores import Scores, Status, WeightScore, read_scores
from tqs_onnx.verification.manifest import read_manifest
from tqs_passes.errors import InfeasibleError
from tqs_passes.plan.plan import Plan, read_plan
from tqs_passes.tier import Tier

WIDTH = 32
STATIC = '[[static]]\ninput = "k"\n'


def with_weights(text: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a checked model of a state x and a fed integer k [b, 1]."""
    head = f"(float[b, {WIDTH}] x, int64[b, 1] k) => (float[b, {WIDTH}] y)"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {head} {{ {text} }}')
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()
    )
    onnx.checker.check_model(proto)
    return proto


def square(seed: int) -> Floats:
    return values(WIDTH, WIDTH, seed=seed, scale=0.9 * WIDTH**-0.5)


def scores_of(folder: Path, proto: onnx.ModelProto, k: list[int]) -> tuple[Source, Scores]:
    source = opened(folder, proto)
    contexts = Contexts({"x": values(len(k), WIDTH, seed=9), "k": np.array(k)[:, None]}, {})
    return source, score(bed_of(source, spec_of(3, STATIC), contexts), source.sha256, ScoreOptions())


def by_name(scores: Scores) -> dict[str, WeightScore]:
    return {s.weight.rpartition("/")[2]: s for s in scores.weights}


def branching() -> onnx.ModelProto:
    """y = tanh(x A) if max k > 8, else tanh(x B)."""
    return with_weights(
        """most = ReduceMax<keepdims = 0>(k)  flag = Greater(most, eight)
        [rate] y = If(flag)<
          then_branch = t () => (float[b, 32] ty) { ta = MatMul(x, A)  ty = Tanh(ta) },
          else_branch = e () => (float[b, 32] ey) { ea = MatMul(x, B)  ey = Tanh(ea) }>""",
        {"A": square(1), "B": square(2), "eight": np.array(8, np.int64)},
    )


def test_a_branch_that_no_context_ran_is_unseen(tmp_path: Path) -> None:
    found = by_name(scores_of(tmp_path, branching(), [16, 16])[1])
    assert (found["A"].status, found["B"].status) == (Status.ALIVE, Status.UNSEEN)
    assert found["B"].unseen == "no context ran rate/else_branch"


def test_a_loop_without_a_trip_is_unseen(tmp_path: Path) -> None:
    proto = with_weights(
        """first = MatMul(x, A)  n = ReduceMax<keepdims = 0>(k)
        [turns] last = Loop(n, yes, first)<body = b (int64 i, bool go, float[b, 32] at)
          => (bool on, float[b, 32] then) {  on = Identity(go)  m = MatMul(at, B)  then = Tanh(m) }>
        y = Tanh(last)""",
        {"A": square(1), "B": square(2), "yes": np.array(True)},
    )
    found = by_name(scores_of(tmp_path / "none", proto, [0, 0])[1])
    assert (found["B"].status, found["B"].unseen) == (Status.UNSEEN, "no context ran turns/body")
    assert by_name(scores_of(tmp_path / "one", proto, [0, 1])[1])["B"].status is Status.ALIVE


def test_a_matrix_that_where_never_selected_is_unseen(tmp_path: Path) -> None:
    proto = with_weights(
        "flag = Greater(k, eight)  a = MatMul(x, A)  b = MatMul(x, B)  c = Where(flag, a, b)  y = Tanh(c)",
        {"A": square(1), "B": square(2), "eight": np.array(8, np.int64)},
    )
    found = by_name(scores_of(tmp_path, proto, [9, 10])[1])
    assert (found["B"].status, found["B"].unseen) == (Status.UNSEEN, "no context selected it")
    assert found["A"].status is Status.ALIVE


def test_an_expert_whose_gate_was_closed_is_unseen(tmp_path: Path) -> None:
    # The gate is 1 for the larger of two logits that depend on k alone, else 0: every expert is computed.
    proto = with_weights(
        """f = Cast<to = 1>(k)  logits = MatMul(f, router)  top = ArgMax<axis = 1>(logits)
        gate = OneHot<axis = -1>(top, two, onoff)  g = Squeeze(gate, one)  ga, gb = Split<axis = 1>(g)
        a = MatMul(x, A)  b = MatMul(x, B)  wa = Mul(a, ga)  wb = Mul(b, gb)  s = Add(wa, wb)  y = Tanh(s)""",
        {
            "A": square(1),
            "B": square(2),
            "router": np.array([[1.0, -1.0]], np.float32),
            "two": np.array(2, np.int64),
            "one": np.array([1], np.int64),
            "onoff": np.array([0, 1], np.float32),
        },
    )
    found = by_name(scores_of(tmp_path, proto, [3, 5])[1])
    assert (found["A"].status, found["B"].status) == (Status.ALIVE, Status.UNSEEN)
    assert found["B"].unseen == "its gate was closed in every context"


def embedding(more: str = "c = Add(h, e)", **weights: np.ndarray) -> onnx.ModelProto:
    return with_weights(
        f"h = MatMul(x, A)  e_ = Gather(E, k)  e = Squeeze(e_, one)  {more}  y = Tanh(c)",
        {"A": square(1), "E": values(12, WIDTH, seed=3), "one": np.array([1], np.int64), **weights},
    )


def test_rows_that_no_context_read_are_counted_and_named(tmp_path: Path) -> None:
    found = by_name(scores_of(tmp_path, embedding(), [0, 1, 2, 3, 4, 5, 6, -5, 8])[1])
    assert found["E"].status is Status.ALIVE
    assert found["E"].unseen == "no context read 3 of its 12 rows: 9, 10, 11"  # -5 is row 7
    assert found["A"].unseen == ""


def test_a_table_of_which_every_row_was_read_is_seen(tmp_path: Path) -> None:
    assert by_name(scores_of(tmp_path, embedding(), list(range(12)))[1])["E"].unseen == ""


def test_a_table_that_a_matrix_product_reads_as_well_is_seen(tmp_path: Path) -> None:
    tied = embedding("t = Transpose(E)  u = MatMul(x, t)  v = MatMul(u, E)  d = Add(h, v)  c = Add(d, e)")
    assert by_name(scores_of(tmp_path, tied, [0, 1])[1])["E"].unseen == ""


def test_rows_that_cannot_be_followed_count_as_unread(tmp_path: Path) -> None:
    proto = with_weights(
        "h = MatMul(x, A)  e = GatherND(E, k)  c = Add(h, e)  y = Tanh(c)",
        {"A": square(1), "E": values(12, WIDTH, seed=3)},
    )
    found = by_name(scores_of(tmp_path, proto, [0, 1])[1])
    assert found["E"].unseen == "the rows that GatherND reads are not followed"


def test_experts_picked_by_gather_are_rows_of_their_stack(tmp_path: Path) -> None:
    proto = with_weights(
        """i = Squeeze(k, one)  w = Gather(stack, i)  u = Unsqueeze(x, one)  p = MatMul(u, w)  q = Squeeze(p, one)
        y = Tanh(q)""",
        {
            "stack": values(4, WIDTH, WIDTH, seed=3, scale=0.9 * WIDTH**-0.5),
            "one": np.array([1], np.int64),
        },
    )
    found = by_name(scores_of(tmp_path, proto, [0, 2, 0])[1])
    assert found["stack"].unseen == "no context read 2 of its 4 rows: 1, 3"


def test_a_weight_multiplied_by_zero_is_dead_not_unseen(tmp_path: Path) -> None:
    source = opened(tmp_path, motley())
    scores = scored(source, spec_of(3), values(2, 6, seed=5))
    found = {s.weight: (s.status, s.unseen) for s in scores.weights}
    assert found["D"] == (Status.DEAD, "")


def test_a_member_of_a_block_that_no_context_ran_is_unseen(tmp_path: Path) -> None:
    source = opened(tmp_path, branching())
    contexts = Contexts({"x": values(2, WIDTH, seed=9), "k": np.array([[16], [16]])}, {})
    options = ScoreOptions(blocks=Blocks("stored:2"))
    found = by_name(score(bed_of(source, spec_of(3, STATIC), contexts), source.sha256, options))
    assert (found["A"].unseen, found["B"].unseen) == ("", "no context ran rate/else_branch")


def planned(folder: Path, proto: onnx.ModelProto, k: list[int], tiers: TierSet, n_bytes: int) -> Plan:
    source, scores = scores_of(folder, proto, k)
    return plan_within(request_for(source, scores, "fast", tiers), n_bytes, PlanOptions())


def test_unseen_weights_keep_eight_bits_and_the_plan_says_why(tmp_path: Path) -> None:
    plan = planned(tmp_path, branching(), [16, 16], TierSet(), 2790)
    a, b = sorted(plan.assignments, key=lambda a: a.label)
    assert a.least_bits < 8 <= b.least_bits
    assert not b.dead
    assert (a.unseen, b.unseen) == ("", "no context ran rate/else_branch")
    assert any("'B' keeps 8 bits or more: no context ran rate/else_branch" in w for w in plan.warnings)


def test_the_unseen_weights_of_a_branch_share_one_warning(tmp_path: Path) -> None:
    proto = with_weights(
        """most = ReduceMax<keepdims = 0>(k)  flag = Greater(most, eight)
        [rate] y = If(flag)<
          then_branch = t () => (float[b, 32] ty) { ta = MatMul(x, A)  ty = Tanh(ta) },
          else_branch = e () => (float[b, 32] ey) { ea = MatMul(x, B)  eb = Tanh(ea)  ey = MatMul(eb, C) }>""",
        {"A": square(1), "B": square(2), "C": square(3), "eight": np.array(8, np.int64)},
    )
    (said,) = planned(tmp_path, proto, [16, 16], TierSet(), 4500).warnings
    assert said.startswith("'B' and 1 more keep 8 bits or more: no context ran rate/else_branch")


def test_a_table_with_unread_rows_keeps_eight_bits(tmp_path: Path) -> None:
    plan = planned(tmp_path, embedding(), [0, 1, 2], TierSet(), 2000)
    found = {a.weight: a.least_bits for a in plan.assignments}
    assert found["E"] >= 8 > found["A"]


def test_a_pin_overrules_it_and_the_plan_says_so(tmp_path: Path) -> None:
    tiers = TierSet(pins=(parse_rule("B=INT4", "pin"),))
    plan = planned(tmp_path, branching(), [16, 16], tiers, 4000)
    assert {a.label: a.tier for a in plan.assignments}["B"] is Tier.INT4
    assert any("'B' keeps INT4, as told to" in w for w in plan.warnings)


def test_a_budget_that_it_forbids_says_so_and_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError) as caught:
        planned(tmp_path, branching(), [16, 16], TierSet(), 1000)
    assert "kept at 8 bits, because no context ran them: 'B'" in str(caught.value)
    assert "give `contexts` that run them" in caught.value.todo
    smallest = caught.value.smallest_bytes
    assert planned(tmp_path, branching(), [16, 16], TierSet(), smallest).n_bytes == smallest
    # B takes WIDTH² bytes of it. Contexts that run both branches allow it less: one bit a value takes an eighth.
    low = smallest - WIDTH * WIDTH // 2
    source = opened(tmp_path / "both", branching())
    x, k = values(2, WIDTH, seed=9), np.array([[16], [2]])
    bed = bed_of(source, spec_of(3, STATIC), Contexts({"x": x, "k": k}, {}), batch=1)
    scores = score(bed, source.sha256, ScoreOptions())
    assert not any(s.unseen for s in scores.weights)
    assert plan_within(request_for(source, scores, "fast", TierSet()), low, PlanOptions()).n_bytes <= low


def test_the_branch_that_was_not_run_still_works_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = write_case(tmp_path / "in", branching(), more=STATIC, truth=False)
    for path in (case.contexts, case.evaluation):
        np.savez(path, x=np.load(path)["x"], k=np.full((3, 1), 16))
    out = tmp_path / "run"
    options = case.arguments("--out", str(out), "--max-bytes", "3000", "--json")
    assert main(["quantize", str(case.model), *options]) == 0
    said = "no context ran rate/else_branch"
    assert json.loads(capsys.readouterr().out)["unseen"] == {"B": said}
    assert {s.label: s.unseen for s in read_scores(out / "scores.json").weights}["B"] == said
    assert {a.label: a.unseen for a in read_plan(out / "plan.json").assignments}["B"] == said
    assert read_manifest(out / "manifest.json").unseen == {"B": said}
    x = values(5, WIDTH, seed=21)
    made = run(onnx.load(out / "m.tqs.onnx"), {"x": x, "k": np.full((5, 1), 2)})["y"]
    expected = np.tanh(x @ square(2))
    # INT8 with a scale per column: half a step of max|w|/127 for each of 32 products of normal values.
    bound = np.abs(square(2)).max(axis=0) / 127 / np.sqrt(12) * np.sqrt(WIDTH)
    assert np.sqrt(np.mean((made - expected) ** 2)) < 1.5 * bound.mean()
