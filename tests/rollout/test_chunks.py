"""What stays on the device between rollouts is bounded, and the bound changes no bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rollout.test_engine import model, session_of, values
from tqs_onnx.rollout import chunks
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import Session
from tqs_onnx.rollout.spec.spec import parse_spec

SPEC = """version = 1
[rollout]
steps = 4
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[[forcing]]
input = "sun"
[trajectory]
outputs = ["y"]
"""
GRAPH = "(float[b, 3] x, float[b, 3] sun) => (float[b, 3] y) { p = Mul(x, sun)  y = Tanh(p) }"
CONTEXTS = Contexts({"x": values(5, 3), "sun": values(5, 4, 3, seed=1)}, {})
#: Bytes of one chunk of two contexts, of its state and of the forcing of one step.
ONE = 2 * 3 * 4


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the arrays that were put on the device."""
    sizes: list[int] = []
    plain = Session.value

    def counted(self: Session, array: np.ndarray) -> object:
        sizes.append(array.nbytes)
        return plain(self, array)

    monkeypatch.setattr(Session, "value", counted)
    return sizes


def engine() -> Engine:
    return Engine(session_of(model(GRAPH)), parse_spec(SPEC), CONTEXTS, batch=2)


def test_what_fits_is_placed_once(placed: list[int]) -> None:
    rolling = engine()
    for _ in range(3):
        rolling.run()
    assert len(placed) == 3 * (1 + 4)  # three chunks: a state, and a forcing for each step


@pytest.mark.parametrize(("bound", "expected"), [(0, 15), (3 * ONE, 12), (3 * ONE + 3 * ONE, 9)])
def test_beyond_the_bound_arrays_are_placed_when_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, placed: list[int], bound: int, expected: int
) -> None:
    whole = engine().run().outputs["y"]
    monkeypatch.setattr(chunks, "MOST_PLACED_BYTES", bound)
    rolling = engine()
    rolling.run()
    placed.clear()
    again = rolling.run().outputs["y"]
    assert again.tobytes() == whole.tobytes()
    assert expected - 2 <= len(placed) <= expected  # the last chunk is smaller, so a little more of it fits
    assert rolling._calls.chunks._n_bytes <= bound


def test_contexts_that_lie_in_a_row_are_not_copied() -> None:
    (first, *_) = engine()._calls.chunks.of(range(5))
    assert np.shares_memory(first.inputs["x"].numpy(), CONTEXTS.arrays["x"])
