"""`candidates`: every way to store a weight, its exact bytes and its exact error, and which ways are offered."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models import block, draws, info, model_of, tensor
from tqs_passes.encode.weight import Form
from tqs_passes.files.model import Model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.grids.grid import rtn
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.candidates import Menu, kitchen_of, menus
from tqs_passes.plan.forms import LEAST_VALUES, Profile
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import DEFAULT_TIERS, Tier, offered, parse_tiers

TIERS = (*DEFAULT_TIERS, Tier.BF16)


def menus_of(model: Model, profile: Profile = "fast", tiers: tuple[Tier, ...] = TIERS) -> dict[str, Menu]:
    lifted, survey = find_weights(model)
    return {m.weight.name: m for m in menus(kitchen_of(lifted, profile), survey.weights, tiers)}


def matmul(values: np.ndarray, opset: int = 17) -> Model:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    rows, columns = values.shape
    return model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", [2, rows], kind)],
        [info("y", [2, columns], kind)],
        [tensor("w", values)],
        opset,
    )


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_the_first_candidate_keeps_the_weight(profile: Profile) -> None:
    for menu in menus_of(block(), profile).values():
        first = menu.candidates[0].assignment
        assert (first.form, first.tier, first.error_energy) == (Form.KEEP, Tier.FP32, 0.0)


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_fewer_bytes_always_mean_more_error(profile: Profile) -> None:
    listed = menus_of(block(width=48), profile)
    for menu in listed.values():
        for by_rows in (False, True):
            group = [c.assignment for c in menu.candidates[1:] if bool(c.assignment.rows) is by_rows]
            by_size = [(a.n_bytes, a.error_energy) for a in group]
            assert by_size == sorted(by_size, key=lambda pair: -pair[0])
            errors = [error for _, error in by_size]
            assert errors == sorted(set(errors))
    assert len(listed["up"].candidates) > 8


def test_error_energy_is_that_of_the_reference() -> None:
    model = block(width=48)
    stored = {t.name: t for t in model.proto.graph.initializer}
    for name, menu in menus_of(model).items():
        values = tensor_array(stored[name], model.folder)
        for candidate in menu.candidates:
            a = candidate.assignment
            error = reference_weight(a, values).astype(np.float64) - values.astype(np.float64)
            assert a.error_energy == pytest.approx(float(np.sum(error**2)), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_error_energy_is_taken_in_the_weights_own_type(dtype: type[np.generic]) -> None:
    values = draws(0, 40, 50, dtype=dtype)
    menu = menus_of(matmul(values))["w"]
    assert len(menu.candidates) > 4
    for candidate in menu.candidates:
        decoded = reference_weight(candidate.assignment, values)
        assert decoded.dtype == values.dtype
        error = decoded.astype(np.float64) - values.astype(np.float64)
        assert candidate.assignment.error_energy == pytest.approx(float(np.sum(error**2)), rel=1e-12)


def test_every_tier_has_less_error_than_plain_rounding_at_its_width() -> None:
    values = draws(1, 64, 96)
    for candidate in menus_of(matmul(values))["w"].candidates:
        a = candidate.assignment
        if a.tier.is_integer:
            plain = float(np.sum((rtn(values, a.tier.bits, a.axis).astype(np.float64) - values) ** 2))
            assert a.error_energy <= plain * (1 + 1e-5)  # compared in float32 while scales are chosen


def test_a_small_weight_is_only_kept() -> None:
    assert [c.assignment.form for c in menus_of(block())["bias"].candidates] == [Form.KEEP]


def test_a_fused_reader_gets_dequantize_linear_and_others_cast_and_multiply() -> None:
    with mock.patch.dict(LEAST_VALUES, clear=True):  # however small the weight
        listed = menus_of(block(width=48))
    for name, form in (("up", Form.DEQUANTIZE), ("down", Form.DEQUANTIZE), ("kernel", Form.CAST_MUL)):
        forms = {c.assignment.form for c in listed[name].candidates if c.assignment.tier.is_integer}
        assert forms == {form}, name


@pytest.mark.parametrize(("opset", "profile"), [(17, "exact"), (12, "fast")])
def test_nothing_is_dequantized_under_the_exact_profile_or_an_old_opset(opset: int, profile: Profile) -> None:
    forms = {c.assignment.form for c in menus_of(matmul(draws(0, 64, 96), opset), profile)["w"].candidates}
    assert forms == {Form.KEEP, Form.CAST, Form.CAST_MUL}


def test_bfloat16_needs_opset_13() -> None:
    wide = draws(0, 64, 96) * np.float32(1e6)  # beyond float16
    for opset, tiers in ((12, {Tier.FP32}), (13, {Tier.FP32, Tier.BF16})):
        found = menus_of(matmul(wide, opset), tiers=(Tier.BF16, Tier.FP16))["w"].candidates
        assert {c.assignment.tier for c in found} == tiers


def test_float16_is_not_offered_beyond_its_range() -> None:
    values = draws(0, 64, 96)
    values[0, 0] = 7e4
    assert {c.assignment.tier for c in menus_of(matmul(values), tiers=(Tier.FP16,))["w"].candidates} == {
        Tier.FP32
    }


def test_a_float16_weight_at_the_edge_never_decodes_to_infinity() -> None:
    values = draws(0, 64, 96, dtype=np.float16) * np.float16(1e4)
    values[::2, ::3] = 65504
    values[1::2, ::3] = -65504
    candidates = menus_of(matmul(values))["w"].candidates
    assert len(candidates) > 1
    for candidate in candidates:
        assert np.isfinite(reference_weight(candidate.assignment, values)).all()


def test_a_double_beyond_float32_gets_no_integer_tier() -> None:
    values = draws(0, 64, 96, dtype=np.float64)
    values[3, 3] = 1e300
    assert {c.assignment.tier for c in menus_of(matmul(values))["w"].candidates} == {Tier.FP64}


def test_only_tiers_that_were_asked_for_are_offered() -> None:
    found = menus_of(matmul(draws(0, 64, 96)), tiers=(Tier.INT8, Tier.INT3))["w"].candidates
    assert {w for c in found for w in c.assignment.widths} == {8, 3}


def test_scales_take_no_large_share_of_the_values() -> None:
    values = draws(0, 3, 2000)
    for candidate in menus_of(matmul(values))["w"].candidates:
        assert candidate.assignment.axis != 1


@pytest.mark.parametrize("stored_as", ["raw", "fields"])
def test_a_kept_weight_takes_the_bytes_it_is_stored_in(stored_as: str) -> None:
    values = draws(0, 64, 96, dtype=np.float16)
    model = matmul(values)
    if stored_as == "fields":
        model.proto.graph.initializer[0].CopyFrom(
            helper.make_tensor("w", TensorProto.FLOAT16, values.shape, values.reshape(-1))
        )
    np.testing.assert_array_equal(numpy_helper.to_array(model.proto.graph.initializer[0]), values)
    keep = menus_of(model)["w"].candidates[0].assignment
    assert keep.n_bytes - model.proto.graph.initializer[0].ByteSize() == 3  # tag and length


def test_tiers_are_parsed_and_sorted_from_the_finest() -> None:
    assert parse_tiers(" int2, FP16 ,int8") == (Tier.FP16, Tier.INT8, Tier.INT2)


@pytest.mark.parametrize("text", ["", " , ", "INT9", "int8;int4"])
def test_unknown_tiers_are_refused(text: str) -> None:
    from tqs_passes.errors import InputError

    with pytest.raises(InputError, match="tier"):
        parse_tiers(text)


def test_offered_tiers_are_narrower_than_the_source() -> None:
    assert offered(TIERS, "float16")[:2] == (Tier.FP16, Tier.INT8)
    assert offered(TIERS, "float64")[:2] == (Tier.FP64, Tier.FP32)
    assert [t.bits for t in (Tier.FP64, Tier.FP32, Tier.BF16, Tier.INT8, Tier.INT1)] == [64, 32, 16, 8, 1]
