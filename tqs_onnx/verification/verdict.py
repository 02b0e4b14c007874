"""Summarizes a verification in words: how much smaller the file is, and how long its forecast stays as good."""

from __future__ import annotations

from collections.abc import Mapping

from tqs_onnx.verification.evaluate import Drift, TruthError
from tqs_onnx.verification.verify import Verification

#: A step counts as good if its MAE exceeds that of FP32 by at most this, in percent.
AS_GOOD = 1.0
#: A step also counts as good if the two forecasts differ by at most this, in standard deviations: if FP32 is nearly
#: exact, a percentage of its error is meaningless.
CLOSE = 0.01


def verdict(v: Verification) -> str:
    """Return one line about a file: its size, and its forecasts compared with those of FP32.

    With truth, the MAE of the worst variable is compared step by step, until the first step whose MAE is more than 1 %
    larger and whose forecasts differ by more than 0.01 σ. The steps before it are "as good as FP32" if all of them meet
    the first limit, else "within 0.01 σ of FP32". Without truth, the line states the distance from the forecasts of
    FP32 in standard deviations. It says so if the contexts are made.
    """
    return verdict_of(v.compression, v.drift, v.truth, on_made_contexts=v.on_made_contexts)


def verdict_of(
    compression: float, drift: Drift, truth: Mapping[str, TruthError], *, on_made_contexts: bool = False
) -> str:
    """Return the verdict on a file with this compression, drift and errors; see `verdict`."""
    smaller = f"{compression:.3g} times smaller"
    if not truth:
        return f"{smaller}; {_by_drift(drift.per_step)}{' (on made contexts)' if on_made_contexts else ''}"
    name, worst = max(truth.items(), key=lambda item: item[1].degradation)
    return f"{smaller}; {_by_truth(worst, drift.per_step, f' in {name}' if len(truth) > 1 else '')}"


def _by_truth(error: TruthError, drift: tuple[float, ...], where: str) -> str:
    steps = error.degradation_per_step
    n = len(steps)
    near = [d <= CLOSE for d in drift[:n]] + [False] * (n - len(drift))
    as_good = _length([e <= AS_GOOD for e in steps])
    good = _length([e <= AS_GOOD or c for e, c in zip(steps, near, strict=True)])
    how = "as good as FP32" if good == as_good else f"within {CLOSE:g} σ of FP32"
    whole = f"MAE {change(error.degradation)} over all steps{where}"
    if good == n:
        return (
            f"{how} at all {n} steps ({whole})"
            if n > 1
            else f"{how} (MAE {change(error.degradation)}{where})"
        )
    if n == 1:
        return f"MAE {change(error.degradation)}{where}"
    last = f"{change(steps[-1])} at step {n}"
    return f"{how} to step {good}, {last} ({whole})" if good else f"MAE {last}, {whole}"


def _by_drift(steps: tuple[float, ...]) -> str:
    close = _length([d <= CLOSE for d in steps])
    n = len(steps)
    if n == 1 and close == 0:
        return f"its forecasts are {steps[0]:.2g} σ away from FP32"
    if close == n:
        return f"its forecasts stay within {CLOSE:g} σ of FP32" + (f" at all {n} steps" if n > 1 else "")
    last = f"{steps[-1]:.2g} σ away at step {n}"
    if close == 0:
        return f"its forecasts are {steps[0]:.2g} σ away from FP32 at step 1 and {last}"
    return f"its forecasts stay within {CLOSE:g} σ of FP32 to step {close} and are {last}"


def _length(good: list[bool]) -> int:
    """Return the number of steps before the first that is not good."""
    return next((i for i, so in enumerate(good) if not so), len(good))


def change(percent: float) -> str:
    """Return a change of MAE in words.

    >>> change(4.96), change(-0.31), change(0.0), change(912.3), change(float("inf"))
    ('5.0 % worse', '0.3 % better', 'unchanged', '912 % worse', 'worse than an exact FP32')
    """
    size = abs(percent)
    if size == float("inf"):
        return "worse than an exact FP32"
    if size < 0.05:
        return "unchanged"
    return f"{size:.0f} % {_WORD[percent > 0]}" if size >= 10 else f"{size:.1f} % {_WORD[percent > 0]}"


_WORD = {True: "worse", False: "better"}
