from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.rollouts import bed_of
from tests.rounding.published.gptq import gptaq, gptq
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs.baseline import unscored_uniform_plan
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.session import Session
from tqs_onnx.rollout.spec.spec import RolloutSpec, load_spec
from tqs_onnx.rounding import calibrate
from tqs_onnx.rounding.assign import (
    GROWTH_LIMIT,
    Assigned,
    Method,
    RoundingOptions,
    decoded_weights,
    round_plan,
)
from tqs_onnx.rounding.calibrate import Calibration, Statistics
from tqs_onnx.rounding.codes_file import codes_digest, read_codes, write_codes
from tqs_onnx.rounding.tune import DAMPS, STRENGTHS, Tuner, qep_settings
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Grid
from tqs_passes.grids.row_tiers import nearest_tier
from tqs_passes.plan.assigned import round_weight
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier

SPEC = """
version = 1
[rollout]
steps = 3
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[trajectory]
outputs = ["y"]
"""
N_CONTEXTS, WIDTH, HIDDEN, STEPS = 10, 12, 32, 3


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((WIDTH, HIDDEN)).astype(np.float32) / np.float32(np.sqrt(WIDTH)),
        "b": rng.standard_normal((HIDDEN, WIDTH)).astype(np.float32) / np.float32(np.sqrt(HIDDEN)),
        "table": 0.05 * rng.standard_normal((64, WIDTH)).astype(np.float32),
    }


def forward(x: np.ndarray, w: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (what b is multiplied with, y)."""
    hidden = np.tanh(x @ w["a"])
    return hidden, hidden @ w["b"] + w["table"].sum(axis=0)


def saved(folder: Path) -> Path:
    w = arrays()
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["z"], name="second"),
        helper.make_node("ReduceSum", ["table", "axes"], ["row"], keepdims=0),
        helper.make_node("Add", ["z", "row"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", WIDTH]) for n in ("x", "y")]
    stored = [numpy_helper.from_array(w[n], n) for n in ("b", "a", "table")]  # not in the order of readers
    stored.append(numpy_helper.from_array(np.array([0]), "axes"))
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    (folder / "rollout.toml").write_text(SPEC)
    return folder / "model.onnx"


def contexts(seed: int = 1) -> Contexts:
    x = np.random.default_rng(seed).standard_normal((N_CONTEXTS, WIDTH)).astype(np.float32)
    x[:, 1] = 2 * x[:, 0]  # correlated, so that compensation has something to work with
    return Contexts({"x": x}, {})


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Source, RolloutSpec]:
    source = open_source(saved(tmp_path))
    return source, load_spec(tmp_path / "rollout.toml")


def calibration(source: Source, spec: RolloutSpec, *, batch: int | None = None) -> Calibration:
    return Calibration(bed_of(source, spec, contexts(), {"y": 1.0}, batch=batch))


def test_the_sums_of_a_weight_without_a_rule_are_refused(opened: tuple[Source, RolloutSpec]) -> None:
    with pytest.raises(InputError, match="no input reaches this weight"):
        calibration(*opened).statistics("table", {})


def plan_of(source: Source, bits: int) -> Plan:
    return unscored_uniform_plan(source, bits, "exact", Serving())


def states() -> list[np.ndarray]:
    """The nominal trajectory's inputs, float64."""
    x, w = contexts().arrays["x"].astype(np.float64), arrays()
    found = []
    for _ in range(STEPS):
        found.append(x)
        x = forward(x, w)[1]
    return found


@pytest.mark.parametrize("batch", [None, 3])
def test_sums_are_over_teacher_forced_pairs_of_every_step_and_context(
    opened: tuple[Source, RolloutSpec], batch: int | None
) -> None:
    moved = {"a": np.round(arrays()["a"], 1).astype(np.float32)}
    found = calibration(*opened, batch=batch).statistics("b", moved)
    H = D = np.zeros((HIDDEN, HIDDEN))
    for x in states():
        full, seen = forward(x, arrays())[0], forward(x, {**arrays(), **moved})[0]
        H, D = H + seen.T @ seen, D + (full - seen).T @ seen
    # float32 activations against float64 ones: 1e-6 relative each, over 30 rows
    np.testing.assert_allclose(found.H[0], H, atol=1e-4)
    np.testing.assert_allclose(found.D[0], D, atol=1e-4)
    assert found.n_rows == STEPS * N_CONTEXTS


def test_what_nobody_needs_is_zero(opened: tuple[Source, RolloutSpec]) -> None:
    moved = {"a": np.round(arrays()["a"], 1).astype(np.float32)}
    found = calibration(*opened)
    whole, alone = found.statistics("b", moved), found.statistics("b", moved, paired=False)
    np.testing.assert_array_equal(alone.H, whole.H)
    assert whole.D.any()
    assert not alone.D.any()
    assert not found.statistics("b", {}).D.any()


@pytest.mark.parametrize("bound", ["KEPT_BYTES", "MOST_SHOWN_BYTES"])
def test_sums_are_the_same_when_nothing_is_kept_between_weights(
    opened: tuple[Source, RolloutSpec], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    kept = calibration(*opened, batch=4)
    expected = [kept.statistics(name, {}).H for name in ("a", "b")]
    monkeypatch.setattr(calibrate, bound, 0)
    walked = calibration(*opened, batch=4)
    asked: list[int] = []
    plain = Session.run

    def counted(self: Session, inputs: object, outputs: Sequence[str], **more: object) -> object:
        asked.append(len(outputs))
        return plain(self, inputs, outputs, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", counted)
    for name, H in zip(("a", "b"), expected, strict=True):
        np.testing.assert_array_equal(walked.statistics(name, {}).H, H)
    assert (max(asked) < len(walked._seeing.outputs) + 1) == (bound == "MOST_SHOWN_BYTES")


def output_error(assigned: Assigned, found: Calibration) -> float:
    """Squared error of one teacher-forced step with every weight rounded, summed over the trajectory."""
    w = {**arrays(), **decoded_weights(assigned, found.arrays)}
    return float(sum(np.sum((forward(x, w)[1] - forward(x, arrays())[1]) ** 2) for x in states()))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("method", ["gptq", "gptaq", "qep"])
def test_rounding_with_data_moves_the_output_less(
    opened: tuple[Source, RolloutSpec], bits: int, method: str
) -> None:
    found, plan = calibration(*opened), plan_of(opened[0], bits)
    plain = round_plan(plan, found, RoundingOptions("mse"))
    assert output_error(round_plan(plan, found, RoundingOptions(method)), found) < output_error(plain, found)


def test_the_plan_says_what_was_done(opened: tuple[Source, RolloutSpec]) -> None:
    assigned = round_plan(plan_of(opened[0], 3), calibration(*opened), RoundingOptions("gptq"))
    said = {a.weight: a.rounding for a in assigned.plan.assignments}
    assert said == {"a": "gptq", "b": "gptq", "table": "unbiased"}
    assert set(assigned.codes) == {"a", "b"}
    assert [(n.what, n.why) for n in assigned.notes] == [
        ("table", "rounded without data: no rule for ReduceSum")
    ]


def test_error_energies_are_those_of_the_codes(opened: tuple[Source, RolloutSpec]) -> None:
    assigned = round_plan(plan_of(opened[0], 3), calibration(*opened), RoundingOptions("qep"))
    for a in assigned.plan.assignments:
        if a.weight in assigned.codes:
            delta = assigned.codes[a.weight].decode().astype(np.float64) - arrays()[a.weight]
            assert a.error_energy == pytest.approx(float(np.sum(delta**2)), rel=1e-12)


def test_predicted_drift_follows_the_output_error(opened: tuple[Source, RolloutSpec]) -> None:
    plan = plan_of(opened[0], 3)
    costly = tuple(a.model_copy(update={"cost": 1.0}) for a in plan.assignments)
    plan = plan.model_copy(update={"assignments": costly, "predicted_drift": 1.0})
    assigned = round_plan(plan, calibration(*opened), RoundingOptions("gptq"))
    mean = np.mean([a.cost for a in assigned.plan.assignments])
    assert assigned.plan.predicted_drift == pytest.approx(np.sqrt(mean))
    assert mean < 1


def test_later_weights_see_earlier_ones_rounded(opened: tuple[Source, RolloutSpec]) -> None:
    plan = plan_of(opened[0], 2)
    both = round_plan(plan, calibration(*opened), RoundingOptions("gptq"))
    kept = tuple(
        a.model_copy(
            update={"tier": Tier.FP32, "form": Form.KEEP, "rounding": "keep", "grid": None, "axis": None}
        )
        if a.weight == "a"
        else a
        for a in plan.assignments
    )
    alone = round_plan(
        plan.model_copy(update={"assignments": kept}), calibration(*opened), RoundingOptions("gptq")
    )
    assert not np.array_equal(both.codes["b"].levels, alone.codes["b"].levels)


def test_gptaq_without_strength_is_gptq(opened: tuple[Source, RolloutSpec]) -> None:
    plan, found = plan_of(opened[0], 3), calibration(*opened)
    one = round_plan(plan, found, RoundingOptions("gptq"))
    other = round_plan(plan, found, RoundingOptions("gptaq", alpha=0.0))
    for name in ("a", "b"):
        np.testing.assert_array_equal(one.codes[name].levels, other.codes[name].levels)


def test_rtn_gives_the_largest_value_of_a_channel_the_largest_level(
    opened: tuple[Source, RolloutSpec],
) -> None:
    assigned = round_plan(plan_of(opened[0], 8), calibration(*opened), RoundingOptions("rtn"))
    assert not assigned.codes  # the emitter makes them itself
    made = round_weight(arrays()["a"], next(a for a in assigned.plan.assignments if a.weight == "a"))
    np.testing.assert_array_equal(np.abs(made.levels).max(axis=0), np.full(HIDDEN, 127))


def test_a_correction_beyond_bounds_is_weakened_and_said(opened: tuple[Source, RolloutSpec]) -> None:
    options = RoundingOptions("qep", qep_damp=1e-6, qep_strength=1000.0)
    found = calibration(*opened)
    assigned = round_plan(plan_of(opened[0], 2), found, options)
    assert any("reduced to strength" in note.why for note in assigned.notes)
    decoded = decoded_weights(assigned, found.arrays)["b"]
    # the corrected weight is at most (1 + limit) norms, its rounding errs by less than its own norm
    assert np.linalg.norm(decoded) < 2 * (1 + GROWTH_LIMIT) * np.linalg.norm(arrays()["b"])


def test_inputs_that_are_not_finite_rule_data_out_and_say_so(opened: tuple[Source, RolloutSpec]) -> None:
    found = calibration(*opened)
    statistics = found.statistics("b", {})
    broken = replace(statistics, H=np.full_like(statistics.H, np.nan))
    found.statistics = lambda *_, **__: broken  # type: ignore[method-assign]
    assigned = round_plan(plan_of(opened[0], 3), found, RoundingOptions("gptq"))
    assert not assigned.codes
    assert "not finite" in assigned.notes[0].why


def test_codes_are_read_as_they_were_written(opened: tuple[Source, RolloutSpec], tmp_path: Path) -> None:
    codes = round_plan(plan_of(opened[0], 3), calibration(*opened), RoundingOptions("gptq")).codes
    write_codes(tmp_path / "codes.npz", codes)
    again = read_codes(tmp_path / "codes.npz")
    assert list(again) == list(codes)
    for name, c in codes.items():
        assert (again[name].bits, again[name].grid, again[name].axis) == (c.bits, c.grid, c.axis)
        assert again[name].scales.dtype == c.scales.dtype
        np.testing.assert_array_equal(again[name].decode(), c.decode())


def test_the_same_codes_give_the_same_bytes(opened: tuple[Source, RolloutSpec], tmp_path: Path) -> None:
    codes = round_plan(plan_of(opened[0], 3), calibration(*opened), RoundingOptions("gptq")).codes
    for name in ("one.npz", "two.npz"):
        write_codes(tmp_path / name, codes)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def by_rows(plan: Plan) -> Plan:
    """Return the plan with 2, 4 and 3 bits for the channels of every integer weight in turn."""

    def rows_of(a: Assignment) -> Assignment:
        if not a.tier.is_integer or a.axis is None:
            return a
        rows = ("243" * a.shape[a.axis])[: a.shape[a.axis]]
        return Assignment.model_validate(a.model_dump() | {"rows": rows, "tier": nearest_tier(rows)})

    return plan.model_copy(update={"assignments": tuple(rows_of(a) for a in plan.assignments)})


@pytest.mark.parametrize("method", ["gptq", "gptaq", "qep"])
def test_data_lower_the_output_error_of_row_tiers(method: Method, opened: tuple[Source, RolloutSpec]) -> None:
    plan, found = by_rows(plan_of(opened[0], 3)), calibration(*opened)
    assert sum(bool(a.rows) for a in plan.assignments) >= 2
    statistics = found.statistics("a", {})  # the first weight: nothing before it is rounded
    error: dict[str, float] = {}
    for name in ("mse", method):
        assigned = round_plan(plan, found, RoundingOptions(name))
        delta = decoded_weights(assigned, found.arrays)["a"].astype(np.float64) - arrays()["a"]
        error[name] = float(np.sum((delta.T @ statistics.H[0]) * delta.T))
    assert error[method] < 0.9 * error["mse"]


def test_rows_of_one_width_are_rounded_by_data_as_that_width_is(opened: tuple[Source, RolloutSpec]) -> None:
    mixed, found = by_rows(plan_of(opened[0], 3)), calibration(*opened)
    rows = np.array(list(next(a.rows for a in mixed.assignments if a.weight == "a")))
    codes = round_plan(mixed, found, RoundingOptions("gptq")).codes["a"]
    for bits in (2, 3, 4):
        grid = next(a.grid for a in mixed.assignments if a.weight == "a")
        uniform = tuple(
            a.model_copy(update={"tier": Tier(f"INT{bits}"), "grid": grid, "rows": ""}) if a.rows else a
            for a in mixed.assignments
        )
        plan = mixed.model_copy(update={"assignments": uniform})
        alone = round_plan(plan, found, RoundingOptions("gptq")).codes["a"]
        here = rows == str(bits)
        np.testing.assert_array_equal(codes.levels[:, here], alone.levels[:, here])


def test_codes_of_row_tiers_are_read_as_they_were_written(
    opened: tuple[Source, RolloutSpec], tmp_path: Path
) -> None:
    plan = by_rows(plan_of(opened[0], 3))
    codes = round_plan(plan, calibration(*opened), RoundingOptions("gptq")).codes
    write_codes(tmp_path / "codes.npz", codes)
    again = read_codes(tmp_path / "codes.npz")
    assert codes_digest(again) == codes_digest(codes)
    assert again["a"].rows == codes["a"].rows == next(a.rows for a in plan.assignments if a.weight == "a")


@pytest.mark.parametrize("rows", ["2" * HIDDEN, "24", "9" * HIDDEN])
def test_row_tiers_that_the_levels_do_not_fit_are_refused(
    rows: str, opened: tuple[Source, RolloutSpec], tmp_path: Path
) -> None:
    codes = round_plan(by_rows(plan_of(opened[0], 3)), calibration(*opened), RoundingOptions("gptq")).codes
    write_codes(tmp_path / "codes.npz", {"a": replace(codes["a"], rows=rows)})
    with pytest.raises(InputError, match="levels"):
        read_codes(tmp_path / "codes.npz")


def test_an_empty_set_of_codes_is_a_file_too(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes.npz", {})
    assert read_codes(tmp_path / "codes.npz") == {}


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut"])
def test_a_damaged_codes_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "codes.npz").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_codes(tmp_path / "codes.npz")


def test_levels_that_the_grid_lacks_are_refused(opened: tuple[Source, RolloutSpec], tmp_path: Path) -> None:
    codes = round_plan(plan_of(opened[0], 3), calibration(*opened), RoundingOptions("gptq")).codes
    bad = replace(codes["a"], levels=np.full_like(codes["a"].levels, 100))
    write_codes(tmp_path / "codes.npz", {"a": bad})
    with pytest.raises(InputError, match="3-bit"):
        read_codes(tmp_path / "codes.npz")


def test_the_setting_with_the_least_held_out_drift_is_taken(
    opened: tuple[Source, RolloutSpec], caplog: pytest.LogCaptureFixture
) -> None:
    source, spec = opened
    tuner = Tuner(bed_of(source, spec, contexts(), {"y": 1.0}))
    caplog.set_level("INFO", "tqs_onnx")
    settings = (RoundingOptions("gptq"), *qep_settings(RoundingOptions("qep")))
    best, trials = tuner.best(plan_of(source, 3), settings)
    assert tuple(t.setting for t in trials) == settings
    assert [(s.qep_damp, s.qep_strength) for s in settings[1:]] == [(d, s) for d in DAMPS for s in STRENGTHS]
    assert best == min(trials, key=lambda t: t.drift).setting
    assert len(caplog.messages) == len(trials)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_a_weight_gets_the_integers_of_the_published_method(
    opened: tuple[Source, RolloutSpec], bits: int, method: str
) -> None:
    """On the scales of rtn and a signed grid, which the published programs use as well."""
    found, plan = calibration(*opened), plan_of(opened[0], bits)
    signed = tuple(
        a.model_copy(update={"grid": Grid.SIGNED, "half_scales": False}) if a.weight == "b" else a
        for a in plan.assignments
    )
    plan = plan.model_copy(update={"assignments": signed})
    options = RoundingOptions(method, scales="rtn", alpha=0.5)
    assigned = round_plan(plan, found, options)
    codes = assigned.codes["b"]
    before = {"a": decoded_weights(assigned, found.arrays)["a"]}
    sums = found.statistics("b", before)
    W, H, D = arrays()["b"].astype(np.float64).T, sums.H[0], sums.D[0]
    common = {"bits": bits, "act_order": True, "damp": options.damp, "grid": "signed"}
    theirs = gptq(W, H, **common) if method == "gptq" else gptaq(W, H, D, alpha=0.5, **common)
    np.testing.assert_array_equal(codes.levels, theirs.codes.T)


def test_codes_that_the_weights_alone_determine_are_kept_as_far_as_they_fit(
    opened: tuple[Source, RolloutSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, a = calibration(*opened), next(a for a in plan_of(opened[0], 3).assignments if a.tier.is_integer)
    other = a.model_copy(update={"rounding": "rtn"})
    assert found.plain(a) is found.plain(a.model_copy(update={"cost": 1.0}))
    assert not np.array_equal(found.plain(a).scales, found.plain(other).scales)
    monkeypatch.setattr(calibrate, "_MOST_PLAIN_BYTES", 0)
    again = calibration(*opened)
    assert again.plain(a) is not again.plain(a)
    np.testing.assert_array_equal(again.plain(a).levels, found.plain(a).levels)


@pytest.mark.parametrize("change", [{}, {"rows": True}, {"group": 2}, {"axis": None, "half_scales": True}])
def test_known_scales_give_the_codes_that_they_come_from(
    opened: tuple[Source, RolloutSpec], monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    found, a = calibration(*opened), next(a for a in plan_of(opened[0], 3).assignments if a.tier.is_integer)
    if "rows" in change:
        change = {"rows": "".join("34"[i % 2] for i in range(a.shape[a.axis]))}
    a = a.model_copy(update=change)
    plain = found.plain(a)
    assert plain.rows == a.rows
    assert plain.group == a.group
    again = calibration(*opened)
    first = again.plain(a)
    again._plain.clear()  # as if there were room for the scales alone
    monkeypatch.setattr("tqs_passes.grids.nearest.scales_of", None)
    monkeypatch.setattr("tqs_passes.grids.row_tiers.scales_of", None)
    second = again.plain(a)
    assert second is not first
    for one in (first, second):
        np.testing.assert_array_equal(one.levels, plain.levels)
        np.testing.assert_array_equal(one.scales, plain.scales)


@pytest.mark.parametrize("method", ["gptq", "gptaq", "qep"])
def test_a_column_whose_input_is_always_zero_is_rounded_to_nearest(
    method: Method, opened: tuple[Source, RolloutSpec]
) -> None:
    source, spec = opened
    found, plan = calibration(source, spec), plan_of(source, 4)
    target = next(a for a in plan.assignments if a.weight == "b")
    original = found.statistics

    def silent(weight: str, *given: object, **more: object) -> Statistics:
        sums = original(weight, *given, **more)  # type: ignore[arg-type]
        if weight == "b":
            for square in (sums.H, sums.D):
                square[:, 3] = square[:, :, 3] = 0.0
        return sums

    found.statistics = silent  # type: ignore[method-assign]
    options = RoundingOptions(method)
    codes = round_plan(plan, found, options).codes["b"]
    scales = np.broadcast_to(codes.wide_scales(), target.shape)
    exact = arrays()["b"][3] / scales[3]
    known = np.arange(-15, 16, 2) if codes.grid is Grid.MIDRISE else np.arange(-8, 8)
    nearest = known[np.abs(exact[:, None] - known).argmin(axis=1)]
    np.testing.assert_array_equal(codes.levels[3], nearest)
    assert np.abs(codes.levels[3]).max() > 1
