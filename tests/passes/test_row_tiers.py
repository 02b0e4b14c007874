"""Row tiers: channels of one weight at different widths, from the choice of widths to what the runtime decodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from pydantic import ValidationError

from tests.models import draws, info, model_of, run, tensor
from tests.passes.test_candidates import menus_of
from tests.passes.test_planes import assert_same_bits, proto_of
from tqs_passes.encode.fragment import Fragment
from tqs_passes.encode.planes import plane_widths
from tqs_passes.encode.rows import MOST_PLANES
from tqs_passes.encode.weight import Form, Target, encode_codes, np_dtype, stem_names
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.grids.grid import Grid, grids_for, round_levels
from tqs_passes.grids.nearest import quantize
from tqs_passes.grids.row_tiers import (
    MOST_WIDTHS,
    codes_of_part,
    distinct_widths,
    limits_of,
    nearest_tier,
    order_of,
    parts_of,
    quantize_rows,
    widths_of,
    written,
)
from tqs_passes.plan.assigned import reference_weight, round_weight
from tqs_passes.plan.plan import Assignment, Plan, ServingTarget, read_plan
from tqs_passes.plan.targets import refusal
from tqs_passes.tier import Tier

SHAPES = (((16, 12), 1), ((12, 10), 0), ((5, 8, 3), 1), ((12, 2, 3, 3), 0), ((7, 13), 1))
MIXES = ((1, 2), (2, 3, 4), (3, 5, 7, 8), (1, 4, 6, 8), (2, 8))


def digits(seed: int, n: int, widths: tuple[int, ...]) -> str:
    """Return widths for n channels, all of `widths` among them."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([widths, rng.choice(widths, n - len(widths))])
    return written(rng.permutation(chosen))


def uneven(seed: int, n_in: int, n_out: int) -> np.ndarray:
    """Return a matrix whose columns differ in size by a factor of a hundred."""
    return (draws(seed, n_in, n_out) * np.geomspace(0.1, 10, n_out)).astype(np.float32)


def matmul(values: np.ndarray, opset: int = 17) -> Model:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    rows, columns = values.shape
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model_of(
        [node], [info("x", [2, rows], kind)], [info("y", [2, columns], kind)], [tensor("w", values)], opset
    )


def assignment(rows: str = "3343", **changes: object) -> Assignment:
    fields: dict[str, object] = {
        "weight": "w",
        "label": "w",
        "shape": (6, len(rows)),
        "dtype": "float32",
        "tier": nearest_tier(rows) if set(rows) <= set("12345678") and rows else Tier.INT3,
        "grid": Grid.SIGNED,
        "axis": 1,
        "rows": rows,
        "form": Form.CAST_MUL,
        "rounding": "mse",
        "n_bytes": 0,
        "error_energy": 0.0,
    }
    return Assignment.model_validate(fields | changes)


# ---- widths, parts and their order


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=2, max_size=300))
def test_parts_put_together_and_reordered_are_the_channels(widths: list[int]) -> None:
    rows = written(np.array(widths))
    assert widths_of(rows).tolist() == widths
    parts = parts_of(rows, Grid.MIDRISE)
    behind = np.concatenate([part.channels for part in parts])
    np.testing.assert_array_equal(behind[order_of(parts)], np.arange(len(widths)))
    assert tuple(part.bits for part in parts) == distinct_widths(rows)
    assert all(part.grid in grids_for(part.bits) for part in parts)


@pytest.mark.parametrize(
    ("n", "dtype"), [(256, "uint8"), (257, "uint16"), (1 << 16, "uint16"), (65537, "uint32")]
)
def test_the_order_is_stored_in_the_smallest_type(n: int, dtype: str) -> None:
    assert order_of(parts_of("23" + "3" * (n - 2), Grid.SIGNED)).dtype == dtype


def test_a_weight_of_row_tiers_is_listed_at_its_mean_width() -> None:
    assert [nearest_tier(rows) for rows in ("23", "223", "12", "88887")] == ["INT3", "INT2", "INT2", "INT8"]


@pytest.mark.parametrize("grid", list(Grid))
@pytest.mark.parametrize("widths", MIXES)
def test_every_channel_is_rounded_as_it_would_be_alone(widths: tuple[int, ...], grid: Grid) -> None:
    w = uneven(0, 40, 24)
    rows = digits(1, 24, widths)
    codes = quantize_rows(w, rows, 1, grid)
    for part in parts_of(rows, grid):
        alone = quantize(np.ascontiguousarray(w[:, part.channels]), part.bits, 1, part.grid)
        ours = codes_of_part(codes, part)
        np.testing.assert_array_equal(ours.levels, alone.levels)
        np.testing.assert_array_equal(ours.scales, alone.scales)


@pytest.mark.parametrize("grid", list(Grid))
def test_limits_round_like_the_grids_they_stand_for(grid: Grid) -> None:
    rows = "1234567812345678"
    x = (20 * draws(2, 50, 16)).astype(np.float32)
    ours = limits_of(rows, grid).round(x)
    for part in parts_of(rows, grid):
        np.testing.assert_array_equal(
            ours[:, part.channels], round_levels(x[:, part.channels], part.bits, part.grid)
        )


# ---- in the graph


@pytest.mark.parametrize(
    ("form", "opset"),
    [
        (f, o)
        for f in (Form.CAST_MUL, Form.DEQUANTIZE)
        for o in (9, 11, 13, 17, 21)
        if f is Form.CAST_MUL or o >= 13
    ],
)
@pytest.mark.parametrize("grid", list(Grid))
def test_the_runtime_decodes_what_row_tiers_decode(grid: Grid, form: Form, opset: int) -> None:
    fragments: list[tuple[Fragment, str, str]] = []
    expected: dict[str, np.ndarray] = {}
    for index, ((shape, axis), widths) in enumerate((s, m) for s in SHAPES for m in MIXES):
        rows = digits(index, shape[axis], widths)
        codes = quantize_rows(draws(index, *shape), rows, axis, grid, half_scales=index % 2 == 0)
        name = f"w{index}"
        fragments.append(
            (encode_codes(Target(name, "float32", opset, f"tqs.{index}."), codes, form), name, "float32")
        )
        expected[name] = codes.decode()
    got = run(proto_of(fragments, opset))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert_same_bits(got[name], values)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_row_tiers_of_other_source_types_come_back_in_their_own_type(dtype: str) -> None:
    codes = quantize_rows(draws(3, 6, 8), "33448822", 1, Grid.SIGNED)
    fragment = encode_codes(Target("w", dtype, 17, "tqs.0."), codes, Form.CAST_MUL)
    got = run(proto_of([(fragment, "w", dtype)], 17))["w"]
    assert_same_bits(got, codes.decode().astype(np_dtype(dtype)))


def test_codes_of_row_tiers_take_their_bits_an_order_and_no_more() -> None:
    rows = "2" * 20 + "3" * 30 + "5" * 14
    codes = quantize_rows(draws(4, 48, 64), rows, 1, Grid.SIGNED, half_scales=True)
    fragment = encode_codes(Target("w", "float32", 17, "tqs.0."), codes, Form.DEQUANTIZE)
    raw = sum(len(t.raw_data) for t in fragment.tensors)
    assert raw == 48 * (20 * 2 + 30 * 3 + 14 * 5) // 8 + 2 * 64 + 64
    assert [n.op_type for n in fragment.nodes].count("DequantizeLinear") == 1


def test_every_name_that_row_tiers_store_is_kept_free() -> None:
    widths = sorted(range(1, 8), key=lambda b: -len(plane_widths(b)))[:MOST_WIDTHS]
    assert sum(len(plane_widths(b)) for b in widths) <= MOST_PLANES
    codes = quantize_rows(draws(5, 8, 8), "76537653", 1, Grid.SIGNED)
    fragment = encode_codes(Target("w", "float32", 17, "tqs.0."), codes, Form.CAST_MUL)
    assert {t.name for t in fragment.tensors} <= set(stem_names("w"))


# ---- the plan


def test_a_plan_with_row_tiers_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = Plan(source_sha256="0", profile="exact", assignments=(assignment(),), n_bytes=1, source_bytes=2)
    (tmp_path / "plan.json").write_text(plan.to_json())
    again = read_plan(tmp_path / "plan.json")
    assert again == plan
    assert again.digest() == plan.digest()


def test_other_row_tiers_are_another_plan() -> None:
    one, other = (
        Plan(source_sha256="0", profile="exact", assignments=(assignment(r),), n_bytes=1, source_bytes=2)
        for r in ("3343", "3433")
    )
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        ("3343", {"axis": None}),
        ("3343", {"axis": 0}),
        ("3343", {"tier": Tier.INT4}),
        ("3333", {}),
        ("12345", {}),
        ("3043", {}),
        ("394", {"tier": Tier.INT4}),
        ("33\n43", {}),
        ("３４", {}),
        ("3343", {"encoding": "native"}),
        ("3343", {"grid": None}),
        ("3343", {"tier": Tier.FP16, "form": Form.CAST, "rounding": "cast"}),
        ("3343", {"tier": Tier.FP32, "form": Form.KEEP, "rounding": "keep"}),
    ],
)
def test_row_tiers_that_no_file_can_hold_are_refused(rows: str, changes: dict[str, object]) -> None:
    assert assignment().rows == "3343"
    with pytest.raises((ValidationError, ValueError)):
        assignment(rows, **changes)


@settings(max_examples=200, deadline=None)
@given(rows=st.text(max_size=8), axis=st.integers(0, 3), tier=st.sampled_from(list(Tier)))
def test_a_hostile_plan_is_refused_or_can_be_encoded(
    rows: str, axis: int, tier: Tier, tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = json.loads(
        Plan(
            source_sha256="0", profile="exact", assignments=(assignment(),), n_bytes=1, source_bytes=2
        ).to_json()
    )
    document["assignments"][0].update(rows=rows, axis=axis, tier=tier.value)
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(json.dumps(document))
    try:
        a = read_plan(path).assignments[0]
    except InputError:
        return
    codes = round_weight(draws(0, *a.shape), a)
    encode_codes(Target("w", "float32", 17, "tqs.0."), codes, a.form)


def test_tensorrt_refuses_row_tiers() -> None:
    weight = next(iter(menus_of(matmul(draws(0, 6, 4))).values())).weight
    assert "TensorRT" in str(refusal(assignment(), weight, ServingTarget.TENSORRT, 17))


# ---- what is offered


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_offered_row_tiers_have_exact_bytes_and_errors(dtype: type[np.generic]) -> None:
    values = uneven(6, 120, 96).astype(dtype)
    offered = [c for c in menus_of(matmul(values))["w"].candidates if c.assignment.rows]
    assert len(offered) > 4
    for index, candidate in enumerate(offered):
        a = candidate.assignment
        decoded = reference_weight(a, values).astype(np.float64)
        assert a.error_energy == pytest.approx(
            float(np.sum((decoded - values.astype(np.float64)) ** 2)), rel=1e-9
        )
        target = Target("w", a.dtype, 17, "tqs.0.")
        fragment = encode_codes(target, round_weight(values, a), a.form)
        assert fragment.n_bytes() == a.n_bytes, index
        assert {k: piece.n_bytes() for k, piece in fragment.shared.items()} == candidate.shared


def test_row_tiers_pay_where_channels_differ_and_are_not_offered_where_they_do_not() -> None:
    def least(values: np.ndarray, n_bytes: int, *, rows: bool) -> float:
        found = [c.assignment for c in menus_of(matmul(values))["w"].candidates]
        return min(a.error_energy for a in found if a.n_bytes <= n_bytes and (rows or not a.rows))

    differ = uneven(7, 256, 128)
    # widths between 1 and 6 bits against 3 for all: the sizes of the columns span a factor of a hundred
    assert least(differ, 256 * 128 * 3 // 8 + 1200, rows=True) < 0.2 * least(
        differ, 256 * 128 * 3 // 8 + 1200, rows=False
    )
    small = menus_of(matmul(draws(8, 24, 16)))["w"].candidates
    assert not any(c.assignment.rows for c in small)


def test_no_row_tiers_beat_nothing() -> None:
    menu = menus_of(matmul(uneven(9, 120, 96)))["w"].candidates
    for c in (c.assignment for c in menu if c.assignment.rows):
        for other in (o.assignment for o in menu if o.assignment is not c):
            assert other.n_bytes > c.n_bytes or other.error_energy > c.error_energy
