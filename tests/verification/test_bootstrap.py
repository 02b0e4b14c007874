"""The bootstrap: its draws, its blocks, and that its intervals cover."""

import numpy as np
import pytest

from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.verification.bootstrap import block_length, interval, resamples


def test_a_resample_draws_as_many_as_there_are() -> None:
    counts = resamples(7, number=50).counts
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_the_same_draws_come_every_time() -> None:
    assert np.array_equal(resamples(9).counts, resamples(9).counts)


def test_a_block_is_drawn_whole() -> None:
    counts = resamples(12, 4, number=200).counts
    assert (counts.sum(axis=1) == 12).all()
    ends = counts[:, 0].sum(), counts[:, 6].sum()
    assert ends[0] < ends[1], "the first item lies in one block only"


def test_one_context_or_one_block_leaves_nothing_to_draw() -> None:
    assert resamples(1) is None
    assert resamples(5, 3) is None


def test_overlap_sets_the_block_length() -> None:
    def length(stride: int) -> int:
        rows = np.array([[s, s + 30] for s in range(0, 200, stride)])
        return block_length(Contexts({}, {}, rows=rows), np.arange(len(rows)))

    assert [length(30), length(15), length(10), length(8)] == [1, 2, 3, 4]


def covered(block: int) -> float:
    """Return how often the interval of a mean of 200 correlated values holds the true mean, over 200 samples."""
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(200):
        noise = generator.standard_normal(204)
        values = np.convolve(
            noise, np.ones(5) / 5, "valid"
        )  # neighbours share four of five terms, the mean is 0
        drawn = resamples(len(values), block, number=400)
        low, high = interval(drawn.means(values))
        hits += low <= 0.0 <= high
    return hits / 200


def test_intervals_of_independent_values_cover_in_a_simulation() -> None:
    generator = np.random.default_rng(5)
    drawn = resamples(60, number=400)
    hits = 0
    for sample in generator.exponential(1.0, (300, 60)):
        low, high = interval(drawn.means(sample))
        hits += low <= 1.0 <= high
    # 95 % nominal; percentile intervals of 60 skewed values cover about 93 %, and 300 samples leave ±3 %.
    assert 0.90 <= hits / 300 <= 0.985


def test_blocks_cover_where_single_draws_do_not() -> None:
    # Correlated over five values: the mean of 200 varies as if there were 40. Blocks of 20 recover most of it.
    assert covered(1) < 0.75
    assert covered(20) == pytest.approx(0.90, abs=0.06)
