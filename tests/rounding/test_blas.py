"""The threads of linear algebra while weights are rounded."""

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tests.rounding.test_assign import calibration, opened, plan_of
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.spec.spec import RolloutSpec
from tqs_onnx.rounding import assign, compensate
from tqs_onnx.rounding.blas import SMALL, blas_threads

__all__ = ["opened"]


def threads_now() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("threads", "n_numbers", "inside"),
    [(1, SMALL + 1, {1}), (2, 4, {2}), (0, SMALL, {1}), (0, SMALL + 1, {3})],
)
def test_threads_are_bounded_inside_only(threads: int, n_numbers: int, inside: set[int]) -> None:
    with threadpool_limits(3, user_api="blas"):
        assert threads_now() == {3}
        with blas_threads(threads, n_numbers):
            assert threads_now() == inside
        assert threads_now() == {3}


def test_every_weight_is_rounded_within_the_threads_of_its_run(
    opened: tuple[Source, RolloutSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []

    def noted(*given: object, **more: object) -> object:
        seen.append(threads_now())
        return original(*given, **more)  # type: ignore[arg-type]

    original = compensate.compensate
    monkeypatch.setattr(assign, "compensate", noted)
    with threadpool_limits(3, user_api="blas"):
        assign.round_plan(plan_of(opened[0], 3), calibration(*opened), assign.RoundingOptions("qep"))
    assert seen
    assert seen == [{1}] * len(seen)
