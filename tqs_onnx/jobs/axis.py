"""The axes of a sweep: what is varied, and the name that each combination gives its files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqs_onnx.allocation.objective import Objective, RankBy
from tqs_onnx.allocation.solver.algorithm2 import Solver
from tqs_onnx.allocation.tier_set import TierSet
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.run_directory import resolved
from tqs_onnx.rounding.assign import Method
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class Axis:
    """The axes of a sweep: every combination is one series of targets. An empty axis keeps the value of the options.

    Parameters
    ----------
    compressions : tuple of float
        Input file over output file.
    weight_compressions : tuple of float
        The paper's C: bytes of the weights over their stored bytes, scales and tables included.
    tier_sets : tuple of TierSet
        Bottom-tier ablation (A.15).
    p_fp32 : tuple of float
        FP32 fraction ablation.
    gamma_min : tuple of float or None
    solvers : tuple of {"mckp", "greedy", "greedy-top"}
    objectives : tuple of Objective
    rankings : tuple of RankBy
        Which γ counts (A.13).
    speedups : tuple of float
        Budgets of time beside those of bytes: how many times faster than FP32. The scores must hold activations.
    scores : tuple of path or Scores
        Further scores of the model, by another probe (A.10) or on other contexts (A.11.2): each allocates a series of
        its own, beside the scores of the job; all are measured on the contexts of the job.
    baselines : tuple of {"rtn", "mse", "unbiased", "gptq", "gptaq", "qep"}
        Uniform baselines to write beside the series; every series then also gets a point within the bytes of theirs.
    baseline_bits : tuple of int
        Their widths.
    """

    compressions: tuple[float, ...]
    tier_sets: tuple[TierSet, ...] = ()
    p_fp32: tuple[float | None, ...] = ()
    gamma_min: tuple[float | None, ...] = ()
    solvers: tuple[Solver, ...] = ()
    objectives: tuple[Objective, ...] = ()
    baselines: tuple[Method, ...] = ()
    baseline_bits: tuple[int, ...] = (2, 3, 4)
    weight_compressions: tuple[float, ...] = ()
    rankings: tuple[RankBy, ...] = ()
    speedups: tuple[float, ...] = ()
    scores: tuple[Path | Scores, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the baselines; none without baselines."""
        return self.baseline_bits if self.baselines else ()

    def series(self, options: QuantizeOptions) -> Iterator[tuple[QuantizeOptions, str]]:
        """Yield the options of every series of one set of scores, and the suffix of its file names."""
        plan = options.planning
        tier_sets = self.tier_sets or (options.tiers,)
        bottoms = [t.tiers[-1].value.lower() for t in tier_sets]
        axes = (self.objectives, self.solvers, self.p_fp32, self.gamma_min, self.rankings, self.speedups)
        varied = [len(values) > 1 for values in axes]
        for (i, tiers), objective, solver, share, least, rank_by, speedup in itertools.product(
            enumerate(tier_sets),
            self.objectives or (plan.aim,),
            self.solvers or (plan.solver,),
            self.p_fp32 or (plan.p_fp32,),
            self.gamma_min or (plan.gamma_min,),
            self.rankings or (plan.rank_by,),
            self.speedups or (plan.speedup,),
        ):
            chosen = replace(
                plan,
                objective=objective,
                solver=solver,
                p_fp32=share,
                gamma_min=least,
                rank_by=rank_by,
                speedup=speedup,
            )
            bottom = bottoms[i] if bottoms.count(bottoms[i]) == 1 else f"tiers{i + 1}"
            texts = (
                objective.value,
                solver,
                f"p{chosen.protected_share:g}",
                "gamma-none" if least is None else f"gamma{least:g}",
                f"by-{rank_by.value}",
                "" if speedup is None else f"speed{speedup:g}",
            )
            parts = [bottom] if len(bottoms) > 1 else []
            parts += [text for text, shown in zip(texts, varied, strict=True) if shown]
            # Where settings are compared, each point is the plan of its own settings.
            apart = any(varied) or bool(self.scores)
            refine = replace(options.refine, candidates=1) if apart else options.refine
            yield replace(options, tiers=tiers, plan=chosen, refine=refine), ".".join(["", *parts])


def named_scores(own: Path | Scores, further: Sequence[Path | Scores]) -> dict[str, Scores]:
    """Return the scores of a sweep, its own first, each by the name it has in the sweep; a single one has no name.

    They are named by their probes, else by their folders, else by number: whatever tells them apart.

    Raises
    ------
    InputError
        A file cannot be read, or is given twice.
    """
    given = (own, *further)
    files = [resolved(g) for g in given if isinstance(g, Path)]
    if len(set(files)) < len(files):
        twice = next(f for i, f in enumerate(files) if f in files[:i])
        raise InputError("is given twice", where=str(twice), todo="Give every file of scores once")
    found = [g if isinstance(g, Scores) else read_scores(g) for g in given]
    if len(found) == 1:
        return {"": found[0]}
    probes = [s.probe.kind.value for s in found]
    folders = [g.resolve().parent.name for g in given if isinstance(g, Path)]
    numbers = [f"scores{i}" for i in range(1, len(found) + 1)]
    names = next(n for n in (probes, folders, numbers) if len(set(n)) == len(found))
    return dict(zip(names, found, strict=True))


def file_labels(axis: Axis, options: QuantizeOptions, scores: Mapping[str, Scores]) -> Iterator[str]:
    """Yield what tells the files of a sweep apart: the part of their names after that of the model."""
    targets = [*(f"C{c:g}" for c in axis.compressions), *(f"w{c:g}" for c in axis.weight_compressions)]
    targets += [f"W{bits}" for bits in axis.widths]
    yield from (f"W{bits}.{method}" for bits in axis.widths for method in axis.baselines)
    for name in scores:
        for _, suffix in axis.series(options):
            yield from (f"{target}{suffix}{_ending(name)}" for target in targets)


def _ending(name: str) -> str:
    return f".{name}" if name else ""
