"""What is held out shares nothing with what is kept."""

from __future__ import annotations

import numpy as np

from tqs_onnx.rollout.contexts.context_set import Contexts, held_out


def windows(starts: list[int], length: int) -> Contexts:
    rows = np.array([[s, s + length] for s in starts], np.int64)
    return Contexts({"x": np.arange(len(starts), dtype=np.float32)[:, None]}, {}, rows=rows)


def test_windows_that_share_a_row_with_those_held_out_are_left_out() -> None:
    kept, held = held_out(windows([0, 0, 30, 30, 60, 60, 90, 90], 50), 0.25)
    assert held.rows is not None
    assert kept.rows is not None
    assert held.rows[:, 0].tolist() == [90, 90]
    assert kept.rows[:, 0].tolist() == [0, 0, 30, 30]


def test_where_all_windows_overlap_they_are_parted_by_their_start() -> None:
    kept, held = held_out(windows([0, 1, 2, 3], 50), 0.5)
    assert kept.arrays["x"][:, 0].tolist() == [0, 1]
    assert held.arrays["x"][:, 0].tolist() == [2, 3]


def test_contexts_without_rows_are_parted_in_their_order() -> None:
    contexts = Contexts({"x": np.arange(8, dtype=np.float32)[:, None]}, {})
    kept, held = held_out(contexts, 0.25)
    assert kept.arrays["x"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert held.arrays["x"][:, 0].tolist() == [6, 7]


def test_a_single_start_is_both() -> None:
    kept, held = held_out(windows([5, 5], 10), 0.5)
    assert kept.n_contexts == held.n_contexts == 2
