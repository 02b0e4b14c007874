"""Choose among plans by their joint drift on contexts that chose none of their integers.

    plan of the knapsack ─┐
    … after repair        ├─▶ roll out each, rounded as its file will be ──▶ the least drift; of practically equal
    uniform, ends finer   │                                                 ones the smallest file
    … for fewer bytes ────┘

All plans fit the budget. A plan costs one rounding and one joint rollout.

A file whose integers are chosen by all contexts cannot be judged on them. Its plan is judged with integers that half of
the contexts chose, which drift more. Plans are therefore compared by the least drift that their files may have
(`Rolled.least`): that of integers chosen by the weights alone, or by other contexts, is the drift itself. The contexts
are those that the weights were scored on: repair, and tuning without a calibration set, have seen them, so their plans
are judged a little too well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.refinement.cross_fit import CrossFit, Rolled
from tqs_onnx.refinement.prediction import ratio_interval
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rounding.assign import RoundingOptions
from tqs_passes.plan.plan import Plan, Tried

_LOG = logging.getLogger(__name__)
#: A smaller file whose drift is at most this times the least is preferred.
PRACTICALLY_EQUAL = 1.01


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """A plan that takes part.

    Parameters
    ----------
    name : str
        How its choices were found.
    plan : Plan
        Before contexts chose any of its integers.
    rounding : RoundingOptions
        How its integers are chosen.
    rolled : Rolled or None
        Its rollout; None before, or if no context is left to judge it.
    is_simple : bool
        Whether it needs no measurement: uniform widths.
    """

    name: str
    plan: Plan
    rounding: RoundingOptions
    rolled: Rolled | None = None
    is_simple: bool = False


@dataclass(frozen=True, slots=True)
class Contest:
    """The plan chosen, and what it was chosen from.

    Parameters
    ----------
    chosen : Contender
    tried : tuple of Tried
        All plans, in the order tried; empty if there was only one.
    """

    chosen: Contender
    tried: tuple[Tried, ...]


def contest(contenders: Iterable[Contender], cross_fit: CrossFit, contexts: Contexts) -> Contest:
    """Roll out what was not rolled out yet, and return the plan whose file may drift least (see the module docstring).

    Parameters
    ----------
    contenders : iterable of Contender
        The first is chosen if no context is left to judge.
    cross_fit : CrossFit
    contexts : Contexts
        The scoring contexts.

    Raises
    ------
    InputError
        The model fails on the calibration contexts.
    """
    held: list[Contender] = []
    for c in contenders:
        c = c if c.rolled is not None else replace(c, rolled=cross_fit.rolled(c.plan, c.rounding))
        if c.rolled is None and not held:
            return Contest(c, ())
        held.append(c)
    held = [c for c in held if c.rolled is not None]
    at, rows = _common([c.rolled for c in held if c.rolled is not None])
    drifts = [float(np.sqrt(row.mean())) for row in rows]
    at_best = drifts_at_best(held)
    limit = PRACTICALLY_EQUAL * min(at_best)
    equal = [i for i, drift in enumerate(at_best) if drift <= limit] or [0]
    best = min(equal, key=lambda i: (held[i].plan.n_bytes, at_best[i], i))
    if len(held) == 1:
        return Contest(held[0], ())
    judged = contexts.take(at.tolist())
    tried = tuple(
        Tried(
            name=c.name,
            rounding=c.rounding.title,
            n_bytes=c.plan.n_bytes,
            drift=drift,
            at_best=best_case,
            low=low,
            high=high,
            chosen=i == best,
        )
        for i, (c, drift, best_case, (low, high)) in enumerate(
            zip(held, drifts, at_best, (ratio_interval(judged, row, rows[best]) for row in rows), strict=True)
        )
    )
    for line in told(tried, [c.is_simple for c in held]):
        _LOG.info(line)
    return Contest(held[best], tried)


def drifts_at_best(held: Sequence[Contender]) -> list[float]:
    """Return the least drift that the file of each plan may have; all must have been rolled out."""
    rolled = [c.rolled for c in held if c.rolled is not None]
    if not rolled:
        return []
    rows = _common(rolled)[1]
    return [float(np.sqrt(row.mean())) * r.least for row, r in zip(rows, rolled, strict=True)]


def told(tried: Sequence[Tried], is_simple: Sequence[bool]) -> list[str]:
    """Return what the user should know of a contest: a line for each plan, and whether a simple file is as good.

    Parameters
    ----------
    tried : sequence of Tried
    is_simple : sequence of bool
        Whether each has uniform widths.
    """
    best = next(i for i, t in enumerate(tried) if t.chosen)
    halves = any(t.at_best < t.drift for t in tried)
    best_case = " (at best: the least that integers chosen on all contexts can reach)" if halves else ""
    lines = [f"compared on held-out contexts{best_case}:"]
    lines += [f"  {_line(t)}{' ← chosen' if t.chosen else ''}" for t in tried]
    simple = [t for t, flag in zip(tried, is_simple, strict=True) if flag]
    if is_simple[best]:
        others = [t for t, flag in zip(tried, is_simple, strict=True) if not flag]
        rest = min(others, key=lambda t: t.drift, default=None)
        against = "" if rest is None else f"; {_line(rest)}"
        lines.append(f"note: a uniform file is as good, and is written: {_line(tried[best])}{against}")
    else:
        equal = [t for t in simple if t.low <= 1]
        if equal:
            lines.append(
                f"note: a uniform file is as good within the interval: {_line(min(equal, key=lambda t: t.drift))}"
            )
    return lines


def _line(t: Tried) -> str:
    at_best = f", at best {t.at_best:.4g}" if t.at_best < t.drift else ""
    return f"{t.name}, {t.rounding}: {t.n_bytes:,} bytes, drift {t.drift:.4g}{at_best}"


def _common(rolled: Sequence[Rolled]) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """Return the contexts that all were rolled out on, and the energies of each there."""
    at = rolled[0].at
    for r in rolled[1:]:
        at = np.intersect1d(at, r.at)
    return at, [_energies(r, at) for r in rolled]


def _energies(rolled: Rolled, at: NDArray[np.int64]) -> NDArray[np.float64]:
    where = {int(i): k for k, i in enumerate(rolled.at)}
    return rolled.energies[[where[int(i)] for i in at]]
