"""Group testing for dead weights: similar weights are perturbed together; if nothing moves, one rollout settles all.

A family consists of the weights of one session that have equal shapes and whose labels differ in numbers only (e.g. the
36 modulators of a Swin encoder). When its first member is dead, the others become suspects ::

    suspects perturbed together ── nothing moves ──▶ all dead
                                └─ something moves ─▶ test each half, down to single weights
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tqs_onnx.scoring.plan.perturbation import Perturbation

#: A test saves nothing for smaller families.
_SMALLEST = 3


def families(targets: Sequence[Perturbation]) -> tuple[tuple[Perturbation, ...], ...]:
    """Group the targets of one session by family, in the order of their first members."""
    found: dict[tuple[object, ...], list[Perturbation]] = {}
    for target in targets:
        alike = tuple((re.sub(r"\d+", "#", w.label), w.shape) for w in target.weights)
        found.setdefault((re.sub(r"\d+", "#", target.name) if len(alike) > 1 else "", *alike), []).append(
            target
        )
    return tuple(tuple(members) for members in found.values())


def settle(
    suspects: Sequence[Perturbation], still: Callable[[Sequence[Perturbation]], bool]
) -> tuple[tuple[Perturbation, ...], tuple[Perturbation, ...]]:
    """Return (dead targets, targets to measure one by one); test halves where something moves.

    Parameters
    ----------
    suspects : sequence of Perturbation
    still : callable
        Returns whether nothing moves when all given targets are perturbed together.
    """
    if len(suspects) < 2:
        return (), tuple(suspects)
    if still(suspects):
        return tuple(suspects), ()
    middle = len(suspects) // 2
    left, right = settle(suspects[:middle], still), settle(suspects[middle:], still)
    return (*left[0], *right[0]), (*left[1], *right[1])


def is_worth_testing(family: Sequence[Perturbation]) -> bool:
    """Return whether a family is large enough for a test to save rollouts."""
    return len(family) >= _SMALLEST
