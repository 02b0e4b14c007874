"""Group testing for the dead: weights that look alike are perturbed at once; if nothing moves, one rollout settles all.

A family is the weights of one session whose labels differ in numbers only and whose shapes are equal (the 36
modulators of a Swin encoder, say). When its first member turns out dead the others are suspected ::

    suspects perturbed together ── nothing moves ──▶ all dead
                                └─ something moves ─▶ each half by itself, down to single weights
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tqs_onnx.scoring.plan.perturbation import Perturbation

#: Smaller families are not worth a test.
_SMALLEST = 3


def families(targets: Sequence[Perturbation]) -> tuple[tuple[Perturbation, ...], ...]:
    """Return the targets of one session by family, in the order of their first members."""
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
    """Return (settled, to be measured one by one), testing halves where something moves.

    Parameters
    ----------
    suspects : sequence of Perturbation
    still : callable
        Whether nothing moves when all of these are perturbed at once.
    """
    if len(suspects) < 2:
        return (), tuple(suspects)
    if still(suspects):
        return tuple(suspects), ()
    middle = len(suspects) // 2
    left, right = settle(suspects[:middle], still), settle(suspects[middle:], still)
    return (*left[0], *right[0]), (*left[1], *right[1])


def is_worth_testing(family: Sequence[Perturbation]) -> bool:
    """Whether a family is big enough for a test to save rollouts."""
    return len(family) >= _SMALLEST
