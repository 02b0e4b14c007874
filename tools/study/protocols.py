"""The protocols of the paper (A.1.4, A.4, A.5, A.6), set up for the models of this repository.

    paper                            here
    TimesFM-2.5, 500 values          timesfm_mini, 4 calls of 128 values, 500 kept; probe 6 bits
    Aurora-small, 120 steps of 6 h   aurora_mini, 120 steps of 6 h; probe 6 bits; horizons up to 120
    Pangu-Weather, scored at 24 h,   pangu_mini, scored over 4 steps with a probe of 8 bits, judged after one; tiers
      judged at 6 h                    FP32, BF16, INT8
    –                                lorenz96, 40 steps: the bundled demo

Scoring contexts are validation rows, evaluation contexts test rows. Every file of a sweep is made by the
paper's objective with integers rounded to nearest; BASELINES.md has those of our objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.study.runs import Runs
from tools.study.scored import DRAWS, Study
from tools.study.zoo import TABLES, ZOO, zoo_module

#: The tables of timesfm_mini; the first is studied in full.
FULL_TABLE = "ETTh1"
PAPER_PLANS = ("--objective", "paper", "--rounding", "rtn", "--repair", "0", "--no-rows")
#: QEP tunes itself by rollouts, which takes too long over 120 steps.
LONG_BASELINES = ("rtn", "gptq", "gptaq")
BASELINES = ("--baselines", "rtn,gptq,gptaq,qep", "--baseline-bits")
BOTH = ("--probe", "both", "--draws", str(DRAWS), "--response-bits", "none")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything a study takes.

    Parameters
    ----------
    tables : tuple of str
        Tables on which timesfm_mini is scored.
    floors : tuple of str
        Tables on which the bottom tier is varied.
    steps : int
        Length of the long rollouts of aurora_mini.
    scoring, judging : int
        Contexts of pangu_mini, and a share of the demo's.
    long_scoring, long_judging : int
        Contexts of the long rollouts.
    training : int
        Steps that the quantile head is trained for.
    """

    tables: tuple[str, ...] = tuple(TABLES)
    floors: tuple[str, ...] = (FULL_TABLE, "exchange_rate", "weather")
    steps: int = 120
    scoring: int = 4
    judging: int = 8
    long_scoring: int = 2
    long_judging: int = 4
    training: int = 400


QUICK = Size(
    tables=(FULL_TABLE, "ETTh2"),
    floors=(FULL_TABLE,),
    steps=6,
    scoring=2,
    judging=2,
    long_judging=2,
    training=20,
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its contexts, as arguments of a command.

    Parameters
    ----------
    file : Path
    data : tuple of str
        The rollout spec and the scoring contexts.
    judging : tuple of str
        The evaluation contexts; empty for a table, whose test rows they are.
    """

    file: Path
    data: tuple[str, ...]
    judging: tuple[str, ...] = ()


def timesfm(table: str) -> Model:
    """Return timesfm_mini on a table."""
    folder = ZOO / "timesfm_mini"
    path, count = Study(Path()).contexts("timesfm_mini", table)
    data = ("--rollout", str(folder / "rollout.toml"), "--contexts", str(path), "--max-contexts", str(count))
    return Model(folder / "model.onnx", data, ("--max-eval-contexts", str(2 * count)))


def grid(runs: Runs, name: str, steps: int, scoring: int, judging: int) -> Model:
    """Return a model of the Gulf, with starts of the validation months and of the test year, of so many steps."""
    files: list[str] = []
    for split, count in (("validation", scoring), ("test", judging)):
        path = runs.folder / f"{name}.{split}.{count}x{steps}.npz"
        files.append(str(path))
        if not path.is_file():
            gulf = zoo_module("gulf")
            arrays = zoo_module("gulf_contexts").contexts(
                gulf.load_gulf(gulf.data_folder()), name, split, steps, count
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **arrays)
    folder = ZOO / name
    data = ("--rollout", str(folder / "rollout.toml"), "--contexts", files[0], "--steps", str(steps))
    return Model(folder / "model.onnx", data, ("--eval-contexts", files[1]))


def demo(size: Size) -> Model:
    """Return the bundled Lorenz-96 model."""
    folder = ZOO.parent / "tqs_models" / "lorenz96"
    data = ("--rollout", str(folder / "rollout.toml"), "--contexts", str(folder / "contexts.npz"))
    return Model(
        folder / "model.onnx",
        (*data, "--max-contexts", str(4 * size.scoring)),
        ("--eval-contexts", str(folder / "eval.npz"), "--max-eval-contexts", str(8 * size.judging)),
    )


def scores_of(run: Path) -> tuple[str, ...]:
    """Return the arguments that give a sweep the scores of both probes."""
    return ("--scores", str(run / "scores.json"), "--scores", str(run / "scores.gauss.json"))


def score_timesfm(runs: Runs, size: Size) -> None:
    """Score timesfm_mini on every table."""
    study = Study(runs.folder, runs.threads)
    for table in size.tables:
        study.scores("timesfm_mini", table)


def sweep_timesfm(runs: Runs, size: Size) -> None:
    """Write the frontiers of timesfm_mini: with the baselines, the ablations, the transfer, the bottom tiers."""
    model, run = timesfm(FULL_TABLE), runs.folder / f"timesfm_mini.{FULL_TABLE}"
    common = ("sweep", model.file, *model.data, *model.judging, *PAPER_PLANS)
    five = ("--tiers", "FP32,BF16,INT8,INT4,INT2", "--weight-compressions")
    two = ("--solvers", "mckp,greedy")
    for bits, target in ((2, "12"), (3, "8"), (4, "6")):
        given = (*common, *scores_of(run), *five, target, *two, *BASELINES, str(bits))
        runs.run(f"timesfm.W{bits}", *given)
    runs.run(
        "timesfm.ablation",
        *(*common, *scores_of(run), *five, "8", *two, "--p-fp32-values", "0.02,0.10"),
        *("--rankings", "gamma-task,gamma,gamma-task-mean"),
    )
    own = ("--scores", run / "scores.json")
    runs.run("timesfm.greedy", *common, *own, *five, "4,6,8", "--solvers", "mckp,greedy,greedy-top",
             "--objectives", "paper,energy")  # fmt: skip
    others = [a for t in size.tables for a in ("--scores", runs.folder / f"timesfm_mini.{t}" / "scores.json")]
    runs.run("timesfm.transfer", *common, *others, *five, "4,8")
    floors = ("--tier-sets", "FP32,BF16,INT4,INT2;FP32,BF16,INT4,INT1;FP32,BF16,INT4")
    for table in size.floors:
        model, run = timesfm(table), runs.folder / f"timesfm_mini.{table}"
        given = (
            "sweep",
            model.file,
            *model.data,
            *model.judging,
            *PAPER_PLANS,
            "--scores",
            run / "scores.json",
        )
        runs.run(f"timesfm.floor.{table}", *given, *two, *floors, "--weight-compressions", "7,12")


def score_pangu(runs: Runs, size: Size) -> None:
    """Score pangu_mini over 24 h, by weight and by block of eight."""
    model = grid(runs, "pangu_mini", 4, size.scoring, size.judging)
    words = ("score", model.file, *model.data, *BOTH, "--probe-bits", "8", "--horizons", "1,2,4")
    runs.run("pangu.score", *words)
    runs.run("pangu.blocks", *words, "--blocks", "nodes:8")


def sweep_pangu(runs: Runs, size: Size) -> None:
    """Write the frontier of pangu_mini, judged after one step, with the tiers of the paper."""
    model = grid(runs, "pangu_mini", 1, size.scoring, size.judging)
    three = ("--tiers", "FP32,BF16,INT8")
    runs.run(
        "pangu.paper",
        *("sweep", model.file, *model.data, *model.judging, *scores_of(runs.folder / "pangu.score")),
        *(*PAPER_PLANS, *three, "--weight-compressions", "1.67,2.19,3,3.57", *BASELINES, "4,8"),
    )


def score_aurora(runs: Runs, size: Size) -> None:
    """Score aurora_mini over 30 days, and measure its curvature."""
    model = grid(runs, "aurora_mini", size.steps, size.long_scoring, size.long_judging)
    horizons = ",".join(str(t) for t in (1, 5, 10, 20, 40, 60, 120) if t <= size.steps)
    words = ("score", model.file, *model.data, "--probe", "both", "--response-bits", "none", "--draws", "1")
    runs.run("aurora.score", *words, "--horizons", horizons)


def sweep_aurora(runs: Runs, size: Size) -> None:
    """Write the frontier of aurora_mini over 30 days, and measure the files that Tables 8 and 24 compare."""
    model = grid(runs, "aurora_mini", size.steps, size.long_scoring, size.long_judging)
    scores = runs.folder / "aurora.score"
    five = ("--tiers", "FP32,BF16,INT8,INT4,INT1")
    sweep = runs.run(
        "aurora.W2",
        *("sweep", model.file, *model.data, *model.judging, *scores_of(scores), *PAPER_PLANS, *five),
        *("--weight-compressions", "8", "--baselines", ",".join(LONG_BASELINES), "--baseline-bits", "2"),
    )
    kept = [f"W2.{method}" for method in LONG_BASELINES]
    kept += [f"{target}.{probe}" for target in ("W2", "w8") for probe in ("quant", "gauss")]
    plan = sweep / "model.W2.gptq.plan.json"
    known = ("--scores", scores / "scores.json", "--plan", plan)
    short = grid(runs, "aurora_mini", min(8, size.steps), size.long_scoring, size.long_judging)
    runs.run("aurora.curvature", "curvature", model.file, *known, *short.data, *short.judging)
    for name in kept:
        verify(runs, model, sweep, scores, f"aurora.{name}", name)


def verify(runs: Runs, model: Model, sweep: Path, scores: Path, out: str, name: str) -> None:
    """Roll out one file of a sweep again, for its errors by step."""
    file, plan = sweep / f"model.{name}.onnx", sweep / f"model.{name}.plan.json"
    given = ("--source", model.file, "--plan", plan, "--scores", scores / "scores.json")
    runs.run(
        out,
        *("verify", file, *given, *model.data, *model.judging, "--save-traces", "0"),
        out="--manifest",
        file="manifest.json",
    )


def demo_runs(runs: Runs, size: Size) -> None:
    """Score and sweep the demo, and measure its curvature."""
    model = demo(size)
    run = runs.run("lorenz.score", "score", model.file, *model.data, *BOTH)
    few = (*model.judging[:2], "--max-eval-contexts", str(size.judging))
    known = ("--scores", run / "scores.json")
    runs.run("lorenz.curvature", "curvature", model.file, *known, *model.data, *few)
    plan = ("--weight-compressions", "4,8,12", *BASELINES, "3")
    runs.run(
        "lorenz.paper", "sweep", model.file, *model.data, *model.judging, *scores_of(run), *PAPER_PLANS, *plan
    )


STAGES = (score_timesfm, score_pangu, score_aurora, demo_runs, sweep_timesfm, sweep_pangu, sweep_aurora)
