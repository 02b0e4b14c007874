"""Latency and drift of our files beside those of quantize_dynamic, at its latency and within its bytes.

Latency is the median over interleaved rounds of the ratio to FP32 (`tqs_onnx.rollout.stopwatch`), at the batch of the
rollout: in processor time with one thread, in wall-clock time with more. Drift is measured on the evaluation contexts,
in units of σ of the scoring contexts. Stages, each of which keeps what it found in the work folder ::

    scores   of the weights and of their readers' inputs
    times    of the two files of quantize_dynamic and of the forms             (with more threads: on a quiet machine)
    files    ours, under every profile: for their latency, some shares of it and as fast as can be, within the bytes
             of their smaller file; for half of FP32's time in a quarter of its bytes. One plan each, its integers by
             data or not, whichever drifts less on scoring contexts that did not choose them. Drifts
    race     all files against each other                                      (likewise)

One model ::

    python tools/bench_speedup.py model.onnx [rollout.toml contexts eval] [--profiles fast,qdq]

`eval` is ``-`` when the contexts are a table with test rows; without data, the rollout is drafted and contexts made.
All cases of `speedup_cases.py`, with one thread and with two, and the page of their figures ::

    python -m tools.bench_speedup --cases all --runs FOLDER --out tools/speedups.md

`--until STAGE` ends every case there, `--cases NAMES` and `--threads` do a part: what is known is not done again, and
the page holds every case that has raced.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from speedup_cases import CASES, Case, case_of

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.emission import emit
from tqs_onnx.inputs.data import Data, DataOptions, read_data
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs import offering, stages
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.refine import RefineOptions
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import runtime_version
from tqs_onnx.rollout.stopwatch import Laps, processor, race
from tqs_onnx.rollout.stream import Kept
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.activations import score_activations
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_onnx.verification.timing import first_inputs, paired
from tqs_passes.errors import InfeasibleError
from tqs_passes.plan.forms import Profile
from tqs_passes.plan.targets import Serving

#: Shares of their latency that our files are asked for; 0: as fast as can be.
SHARES = (1.15, 1.04, 0.9, 0.0)
NEAR = 1.05
#: Seconds that a race takes at least.
LEAST_S = 10.0
#: Latencies that differ by less than this share of FP32's are asked for once.
SAME = 0.004
#: What is added to the time of the fastest forms together, so that rounded times still fit.
MARGIN = 1e-3
#: Where no file is that fast within the bytes, it may take this share more time, so many times.
LOOSER, RETRIES = 0.03, 5
#: The file that is also asked for: FP32's bytes and time over this.
SMALLER, FASTER = 4, 2
STAGES = ("scores", "times", "files", "race")
THEIRS = {"quantize_dynamic": False, "quantize_dynamic, per channel": True}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all cases of a run."""

    profiles: tuple[Profile, ...]
    batch: int
    threads: int
    rounds: int
    repair: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Made:
    """A file that is compared; the ratios are over FP32, in the same race."""

    name: str
    path: str
    n_bytes: int
    drift: float
    #: Of ours: the latency that was asked for, and what the plan predicts.
    asked: float | None = None
    predicted: float | None = None
    latency: float | None = None
    load: float | None = None
    memory: float | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """One model with its data: the stages of its comparison."""

    case: Case
    source: Source
    data: Data
    work: Path
    settings: Settings

    @property
    def batch(self) -> int:
        """Return the batch of a call."""
        bed = stages.bed_of(self.source, self.data, self.run)
        return 1 if self.data.spec.rollout.batch_axis is None else bed.fixed_batch or self.wanted

    @property
    def run(self) -> RunOptions:
        """Return where rollouts run."""
        return RunOptions("cpu", batch=self.wanted, threads=self.settings.threads)

    @property
    def wanted(self) -> int:
        """Return the batch that is asked for."""
        return self.case.batch or self.settings.batch

    def kept(self, name: str) -> Path:
        """Return a file of the work folder that belongs to these threads."""
        return self.work / f"{name}.{self.settings.threads}.json"

    def options(self, profile: Profile, most: int) -> QuantizeOptions:
        """Return the options of our files under a profile."""
        return QuantizeOptions(
            budget=Budget(max_bytes=most),
            plan=PlanOptions(speedup=1.0),
            profile=profile,
            serving=Serving(),
            refine=RefineOptions(self.settings.candidates, self.settings.repair),
            run=self.run,
        )

    def theirs(self) -> dict[str, Path]:
        """Write the two files of quantize_dynamic."""
        found = {name: self.work / f"theirs{per_channel}.onnx" for name, per_channel in THEIRS.items()}
        for name, per_channel in THEIRS.items():
            if not found[name].exists():
                quantize_dynamic(
                    str(self.case.model),
                    str(found[name]),
                    per_channel=per_channel,
                    weight_type=QuantType.QInt8,
                )
        return found

    @property
    def most(self) -> int:
        """Return the bytes of the smaller of their files."""
        return min(path.stat().st_size for path in self.theirs().values())

    def scores(self, profile: Profile) -> Scores:
        """Return the scores with the activations that a profile rounds, measured once."""
        kept, own = self.work / "scores.json", self.work / f"scores.{profile}.json"
        options = self.options(profile, self.most)
        bed = stages.bed_of(self.source, self.data, replace(options.run, threads=1))
        if not kept.exists():
            found = stages.scored(self.source, bed, options.score, self.work / "store.sqlite")
            kept.write_text(found.to_json())
        plain = read_scores(kept)
        if not own.exists():
            rounded = score_activations(bed, plain.sigma, plain.horizons, options.scoring.ranges)
            own.write_text(plain.model_copy(update={"activations": rounded}).to_json())
        return read_scores(own)

    def times(self, profile: Profile) -> Path:
        """Return the table of times of a profile, measured once."""
        path = self.kept(f"times.{profile}")
        options, scores = self.options(profile, self.most), self.scores(profile)
        if scores.activations:
            offered = offering.ranged(offering.offer(self.source, options), scores)
            offering.timed(
                self.source, offered, options, stages.bed_of(self.source, self.data, self.run), path
            )
        return path

    def rivals(self) -> dict[str, float]:
        """Return the latencies of their files, measured once."""
        kept = self.kept("rivals")
        if not kept.exists():
            found = self.raced({"FP32": self.case.model} | self.theirs(), loads=0)
            kept.write_text(json.dumps({name: self.latency(found, name) for name in THEIRS}))
        return dict(json.loads(kept.read_text()))

    def raced(self, files: dict[str, Path], loads: int) -> dict[str, Laps]:
        """Race files at the batch of the rollout."""
        feeds = {self.batch: first_inputs(self.data.spec, self.data.evaluation, self.batch)}
        how = {"threads": self.settings.threads, "rounds": self.settings.rounds}
        return race(files, feeds, **how, least_s=LEAST_S, loads=loads)

    def latency(self, found: dict[str, Laps], name: str) -> float:
        """Return the latency of a file over that of FP32."""
        one = self.settings.threads == 1
        mine, base = (found[n].processor_s if one else found[n].wall_s for n in (name, "FP32"))
        return paired(mine[self.batch], base[self.batch])

    def ours(self, profile: Profile) -> Iterator[Made]:
        """Write a file for every latency and number of bytes that can be met."""
        options, scores = self.options(profile, self.most), self.scores(profile)
        if not scores.activations:
            print(f"{profile}: no reader can round its input")
            return
        bed = stages.bed_of(self.source, self.data, self.run).scaled(scores.sigma)
        offered = offering.ranged(offering.offer(self.source, options), scores)
        times = offering.timed(self.source, offered, options, bed, self.times(profile))
        assert times is not None
        request = Request(
            *(offered.menus, scores, offered.size, options.profile, offered.serving), times=times
        )
        instruments = instruments_on(offering.rounding_inputs(bed, offered.menus))
        wanted = [(latency, self.most) for latency in self.asked(times.checked + MARGIN)]
        wanted.append((1 / FASTER, self.case.model.stat().st_size // SMALLER))
        for latency, most in wanted:
            small = "" if most == self.most else f", {SMALLER} × smaller"
            name = f"{profile}, {latency:.3f} asked{small}"
            for asked in (latency * (1 + LOOSER * i) for i in range(1 if small else RETRIES)):
                chosen = replace(options, plan=replace(options.plan, speedup=1 / min(asked, 1.0)))
                try:
                    with Results(self.work / "store.sqlite") as results:
                        plan, request = stages.planned(
                            request, most, self.source, instruments, chosen, results
                        )
                    done = stages.refined(plan, request, instruments, chosen)
                    break
                except InfeasibleError as error:
                    print(f"{name}: {error.what}")
            else:
                continue
            path = (
                self.work
                / f"ours.{profile}.{self.settings.threads}.{latency:.3f}{'.small' if small else ''}.onnx"
            )
            emit(self.source.lifted, done.plan, path, done.codes)
            predicted = done.plan.time.predicted if done.plan.time else None
            yield Made(name, str(path), path.stat().st_size, self.drift(path), latency, predicted)
        bed.close()

    def asked(self, least: float) -> list[float]:
        """Return the latencies that our files are asked for, above the least that is possible."""
        asked: list[float] = []
        for share in SHARES:
            latency = min(max(share * min(self.rivals().values()), least), 1.0)
            if all(abs(latency - other) > SAME for other in asked):
                asked.append(latency)
        return asked

    def drift(self, path: Path) -> float:
        """Return the drift of a file on the evaluation contexts."""
        bed = self.judging
        return bed.drift(bed.stream_file(path)(), Kept(bed.stream_file(self.case.model))())

    @property
    def judging(self) -> Testbed:
        """Return the testbed of the evaluation contexts, in the σ of the scoring contexts."""
        sigma = read_scores(self.work / "scores.json").sigma
        return stages.bed_of(self.source, self.data, self.run).scaled(sigma).on(self.data.evaluation)

    def files(self) -> list[Made]:
        """Return all files with their drifts; each profile's are written once."""
        found = [Made("FP32", str(self.case.model), self.case.model.stat().st_size, 0.0)]
        rivals = self.theirs().items()
        found += [Made(name, str(p), p.stat().st_size, self.drift(p)) for name, p in rivals]
        for profile in self.settings.profiles:
            kept = self.kept(f"files.{profile}")
            if not kept.exists():
                kept.write_text(json.dumps([asdict(made) for made in self.ours(profile)], indent=1))
            found += [Made(**row) for row in json.loads(kept.read_text())]
        return found

    def result(self) -> list[Made]:
        """Return all files with their figures; they race once."""
        kept = self.kept("race")
        if not kept.exists():
            files = self.files()
            found = self.raced({m.name: Path(m.path) for m in files}, loads=5)
            base = found["FP32"]
            rows: list[Made] = []
            for made in files:
                laps = found[made.name]
                memory = (
                    laps.resident_mb / base.resident_mb if laps.resident_mb and base.resident_mb else None
                )
                figures = {"latency": self.latency(found, made.name), "memory": memory}
                rows.append(replace(made, **figures, load=paired(laps.load_s, base.load_s)))
            kept.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        return [Made(**row) for row in json.loads(kept.read_text())]

    def until(self, stage: str) -> None:
        """Do what is not known yet, up to a stage."""
        reached = STAGES.index(stage)
        for profile in self.settings.profiles:
            self.scores(profile)
        if reached >= STAGES.index("times"):
            self.rivals()
            for profile in self.settings.profiles:
                self.times(profile)
        if reached >= STAGES.index("files"):
            self.files()
        if reached >= STAGES.index("race"):
            self.result()

    def section(self, name: str) -> str:
        """Return the table of a model, and a sentence on each of their files."""
        counts = self.data.scoring.n_contexts, self.data.evaluation.n_contexts
        n_threads = self.settings.threads
        lines = [
            f"### {name}, {n_threads} thread{'s' if n_threads > 1 else ''}\n",
            f"Batch {self.batch}, {self.data.spec.rollout.steps} steps, {counts[0]} scoring and {counts[1]} "
            "evaluation contexts.\n",
            "| file | MB | load | memory | latency | predicted | drift |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        rows = self.result()
        for m in rows:
            cells = [f"{m.n_bytes / 1e6:.2f}"]
            cells += [
                "–" if x is None else f"{x:.{k}f}" for x, k in ((m.load, 2), (m.memory, 2), (m.latency, 3))
            ]
            cells += ["" if m.predicted is None else f"{m.predicted:.3f}", f"{m.drift:.4g}"]
            lines.append(f"| {m.name} | {' | '.join(cells)} |")
        mine = [m for m in rows if m.asked is not None]
        lines += ["", *(verdict(m, mine) for m in rows if m.name in THEIRS and mine)]
        return "\n".join(lines) + "\n"


def best_at_latency(rival: Made, mine: Sequence[Made]) -> Made | None:
    """Return our file of least drift that takes at most 5 % more time than theirs."""
    near = [m for m in mine if _known(m.latency) <= NEAR * _known(rival.latency)]
    return min(near, key=lambda m: m.drift, default=None)


def best_at_drift(rival: Made, mine: Sequence[Made]) -> Made | None:
    """Return our fastest file that drifts no more than theirs."""
    return min((m for m in mine if m.drift <= rival.drift), key=lambda m: _known(m.latency), default=None)


def verdict(rival: Made, mine: Sequence[Made]) -> str:
    """Return how our best files compare with one of theirs: at its latency, and at its drift."""
    lines = [f"- {rival.name}: latency {rival.latency:.3f}, drift {rival.drift:.4g}"]
    near, good = best_at_latency(rival, mine), best_at_drift(rival, mine)
    lines.append(
        "none of ours is as fast"
        if near is None
        else f"at its latency, drift {near.drift:.4g} ({near.drift / rival.drift:.2f} of it)"
    )
    share = None if good is None else _known(good.latency) / _known(rival.latency)
    lines.append(
        "none of ours drifts as little"
        if good is None
        else f"at its drift, latency {good.latency:.3f} ({share:.2f} of it)"
    )
    return "; ".join(lines)


def _known(value: float | None) -> float:
    assert value is not None
    return value


TEXT = """# Time and drift beside quantize_dynamic

Made by `python -m tools.bench_speedup --cases all --runs RUNS --out tools/speedups.md` with onnxruntime {runtime} on
{cpu}; no figure is typed in by hand.
Load, memory and latency are multiples of FP32's in one race of {rounds} interleaved rounds or more: processor time with
one thread, wall-clock time with two. Drift is in units of each variable's deviation, on contexts that chose nothing.
Files of ours take at most the bytes of the smaller file of quantize_dynamic.

Best of ours at most 5 % slower than a file of quantize_dynamic, and fastest of ours that drifts no more; its files have
one scale a matrix, or one a channel. *Off*: how far the latency of ours is from what their plans predict, median and
most.

| model | threads | its scales | its latency, drift | ours at its latency: drift | ours at its drift: latency | off |
|---|---:|---|---|---|---|---|
{summary}

*{smaller} × smaller and {faster} × faster, in one file*: the least drift of those that were asked for it.

| model | threads | MB | bytes of FP32's | latency | drift |
|---|---:|---:|---:|---:|---:|
{both}

## All files

{sections}"""


def summary(name: str, threads: int, rows: Sequence[Made]) -> str:
    """Return the lines of a case, one for each of their files."""
    mine = [m for m in rows if m.asked is not None]
    return "\n".join(_line(name, threads, m, mine) for m in rows if m.name in THEIRS)


def _line(name: str, threads: int, rival: Made, mine: Sequence[Made]) -> str:
    near, good = best_at_latency(rival, mine), best_at_drift(rival, mine)
    cells = [
        name,
        str(threads),
        "a channel" if THEIRS[rival.name] else "a matrix",
        f"{rival.latency:.3f}, {rival.drift:.4g}",
    ]
    cells.append("none" if near is None else f"{near.drift:.4g} ({near.drift / rival.drift:.2f} of it)")
    share = None if good is None else _known(good.latency) / _known(rival.latency)
    cells.append(
        "none" if good is None else f"{good.latency:.3f} ({share:.2f} of it), {good.name[:4].strip(',')}"
    )
    off = sorted(abs(_known(m.latency) / m.predicted - 1) for m in mine if m.predicted)
    cells.append(f"{off[len(off) // 2]:.0%}, {off[-1]:.0%}" if off else "–")
    return f"| {' | '.join(cells)} |"


def both(name: str, threads: int, rows: Sequence[Made]) -> str:
    """Return the line of a case's file that was asked to be smaller and faster."""
    fp32 = rows[0]
    found = min((m for m in rows if m.name.endswith("smaller")), key=lambda m: m.drift, default=None)
    if found is None:
        return f"| {name} | {threads} | – | – | not predicted to be possible | – |"
    figures = f"{found.n_bytes / 1e6:.2f} | {found.n_bytes / fp32.n_bytes:.3f} | {found.latency:.3f}"
    return f"| {name} | {threads} | {figures} | {found.drift:.4g} |"


def bench(case: Case, work: Path, settings: Settings) -> Bench:
    """Return the comparison of a case."""
    work.mkdir(parents=True, exist_ok=True)
    source = open_source(case.model)
    return Bench(case, source, read_data(case.data, source), work, settings)


def page(runs: Path, settings: Settings) -> str:
    """Return the page of all cases that have raced."""
    lines: list[str] = []
    pairs: list[str] = []
    sections: list[str] = []
    for name in CASES:
        for threads in (1, 2):
            done = runs / name / f"race.{threads}.json"
            case = case_of(name, runs / name) if done.exists() else None
            if done.exists() and case is None:
                print(f"{name}: left out of the page, because its files are not in $TQS_DATA")
            if case is not None:
                found = bench(case, runs / name, replace(settings, threads=threads))
                rows = found.result()
                lines.append(summary(name, threads, rows))
                pairs.append(both(name, threads, rows))
                sections.append(found.section(name))
    facts = {"cpu": processor(), "runtime": runtime_version(), "rounds": settings.rounds}
    facts |= {"smaller": SMALLER, "faster": FASTER}
    return TEXT.format(summary="\n".join(lines), both="\n".join(pairs), sections="\n".join(sections), **facts)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path, nargs="?")
    for name in ("rollout", "contexts", "evaluation"):
        arguments.add_argument(name, nargs="?")
    arguments.add_argument("--profiles", default="fast,qdq")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--threads", default="1", help="With cases also 1,2.")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--steps", type=int)
    arguments.add_argument("--max-contexts", type=int)
    arguments.add_argument("--max-eval-contexts", type=int)
    arguments.add_argument("--repair", type=int, default=0, help="Rounds of joint repair of our files.")
    arguments.add_argument(
        "--candidates", type=int, default=2, help="Plans in the contest for each of our files."
    )
    arguments.add_argument("--work", type=Path, help="Keep scores, times and files of the model here.")
    arguments.add_argument("--cases", help=f"all, or some of {', '.join(CASES)}.")
    arguments.add_argument("--runs", type=Path, help="Keep those of the cases here.")
    arguments.add_argument("--until", choices=STAGES, default="race")
    arguments.add_argument("--out", type=Path, help="Write the page of the cases here.")
    given = arguments.parse_args()
    logging.disable(logging.WARNING)  # quantize_dynamic advises on the root logger
    profiles: tuple[Profile, ...] = tuple(given.profiles.split(","))
    settings = Settings(profiles, given.batch, 1, given.rounds, given.repair, given.candidates)
    with tempfile.TemporaryDirectory(prefix="tqs-speedup-") as folder:
        if given.cases is None:
            limits = {k: getattr(given, k) for k in ("steps", "max_contexts", "max_eval_contexts")}
            evaluation = None if given.evaluation == "-" else given.evaluation
            data = DataOptions(given.rollout, given.contexts or "made", evaluation, **limits)
            case = Case(given.model, data)
            found = bench(case, given.work or Path(folder), replace(settings, threads=int(given.threads)))
            found.until(given.until)
            if given.until == STAGES[-1]:
                print(found.section(str(given.model)))
            return
        runs = given.runs or Path(folder)
        for name in CASES if given.cases == "all" else given.cases.split(","):
            case = case_of(name, runs / name)
            if case is None:
                print(f"{name}: its files are not in $TQS_DATA")
                continue
            for threads in map(int, given.threads.split(",")):
                print(f"{name}, {threads} threads: until {given.until}", flush=True)
                bench(case, runs / name, replace(settings, threads=threads)).until(given.until)
        if given.out:
            given.out.write_text(page(runs, settings), encoding="utf-8")


if __name__ == "__main__":
    main()
