"""Latency and drift of our files beside those of quantize_dynamic, at its latency and within its bytes.

Latency is the median over interleaved rounds of the ratio to FP32 (`tqs_onnx.rollout.stopwatch`), at the batch of the
rollout, in processor time with one thread; drift is measured on the evaluation contexts, in units of σ of the scoring
contexts. Steps: score the weights and their readers' inputs; time the forms; time and roll out the two files of
quantize_dynamic; then, under every profile, write a file for each of their latencies, for some shares of the faster one
and as fast as can be, within the bytes of the smaller one; then time all files in one race ::

    python tools/bench_speedup.py model.onnx [rollout.toml contexts eval] [--profiles fast,qdq]

`eval` is ``-`` when the contexts are a table with test rows; without data, the rollout is drafted and contexts made.
With ``--work``, scores and tables of times are kept there and used again; ``--files`` adds files of the same model.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

from tqs_onnx.allocation.budget import Budget
from tqs_onnx.allocation.costing import PlanOptions, Request
from tqs_onnx.emission import emit
from tqs_onnx.inputs.data import Data, DataOptions, read_data
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.jobs import stages
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.refinement.instruments import instruments_on
from tqs_onnx.refinement.refine import RefineOptions
from tqs_onnx.rollout.options import RunOptions
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

#: Shares of the faster file's latency that our files are also asked for.
SHARES = (1.15, 0.9, 0.8)
NEAR = 1.05
#: What is added to the time of the fastest forms together, so that rounded times still fit.
MARGIN = 1e-3
NEVER_FASTER = 1.0


def theirs(model: Path, folder: Path) -> dict[str, Path]:
    """Write the two files of quantize_dynamic."""
    found: dict[str, Path] = {}
    for per_channel in (False, True):
        name = f"quantize_dynamic{', per channel' if per_channel else ''}"
        found[name] = folder / f"theirs{per_channel}.onnx"
        quantize_dynamic(str(model), str(found[name]), per_channel=per_channel, weight_type=QuantType.QInt8)
    return found


def scores_of(source: Source, bed: Testbed, options: QuantizeOptions, work: Path) -> Scores:
    """Return the scores with the activations that a profile rounds, measured once."""
    kept = work / "scores.json"
    if not kept.exists():
        kept.write_text(stages.scored(source, bed, options.score, work / "store.sqlite").to_json())
    plain = read_scores(kept)
    own = work / f"scores.{options.profile}.json"
    if not own.exists():
        found = score_activations(bed, plain.sigma, plain.horizons, options.scoring.ranges)
        own.write_text(plain.model_copy(update={"activations": found}).to_json())
    return read_scores(own)


def ours(
    source: Source, data: Data, options: QuantizeOptions, latencies: list[float], most: int, work: Path
) -> Iterator[tuple[str, Path]]:
    """Write a file for every latency that can be met; yield its name."""
    bed = stages.bed_of(source, data, options.run)
    scores = scores_of(source, bed, options, work)
    if not scores.activations:
        print(f"{options.profile}: no reader can round its input")
        return
    bed = bed.scaled(scores.sigma)
    offered = stages.ranged(stages.offer(source, options), scores)
    times = stages.timed(source, offered, options, bed, work / f"times.{options.profile}.json")
    request = Request(*(offered.menus, scores, offered.size, options.profile, offered.serving), times=times)
    instruments = instruments_on(stages.rounding_inputs(bed, offered.menus))
    least = NEVER_FASTER if times is None else times.checked + MARGIN
    for latency in dict.fromkeys(min(max(latency, least), 1.0) for latency in (*latencies, least)):
        chosen = replace(options, plan=replace(options.plan, speedup=1 / latency))
        name = f"{options.profile}, {latency:.3f} asked"
        try:
            with Results(work / "store.sqlite") as results:
                plan, request = stages.planned(request, most, source, instruments, chosen, results)
        except InfeasibleError as error:
            print(f"{name}: {error.what}")
            continue
        done = stages.refined(plan, request, instruments, chosen)
        path = work / f"ours.{options.profile}.{latency:.3f}.onnx"
        emit(source.lifted, done.plan, path, done.codes)
        predicted = plan.time.predicted if plan.time else float("nan")
        yield f"{name}, {predicted:.3f} predicted", path
    bed.close()


def timed(
    files: dict[str, Path], data: Data, batch: int, threads: int, rounds: int
) -> tuple[dict[str, float], dict[str, Laps]]:
    """Return the latency of every file over that of FP32, and all figures."""
    feeds = {batch: first_inputs(data.spec, data.evaluation, batch)}
    found = race(files, feeds, threads=threads, rounds=rounds, loads=3)

    def spent(name: str) -> tuple[float, ...]:
        return (found[name].processor_s if threads == 1 else found[name].wall_s)[batch]

    return {name: paired(spent(name), spent("FP32")) for name in files}, found


def verdict(name: str, mine: list[str], latency: dict[str, float], drift: dict[str, float]) -> str:
    """Return how our best files compare with one of theirs: at its latency, and at its drift."""
    near = [n for n in mine if latency[n] <= NEAR * latency[name]]
    good = [n for n in mine if drift[n] <= drift[name]]
    lines = [f"{name}: latency {latency[name]:.3f}, drift {drift[name]:.4g}"]
    if near:
        best = min(near, key=lambda n: drift[n])
        lines.append(f"at its latency, drift {drift[best]:.4g} ({drift[best] / drift[name]:.2f} of it)")
    if good:
        best = min(good, key=lambda n: latency[n])
        lines.append(f"at its drift, latency {latency[best]:.3f} ({latency[best] / latency[name]:.2f} of it)")
    lines += [] if near else ["none of ours is as fast"]
    lines += [] if good else ["none of ours drifts as little"]
    return "; ".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path)
    for name in ("rollout", "contexts", "evaluation"):
        arguments.add_argument(name, nargs="?")
    arguments.add_argument("--files", type=Path, nargs="*", default=[])
    arguments.add_argument("--profiles", default="fast")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--steps", type=int)
    arguments.add_argument("--max-contexts", type=int)
    arguments.add_argument("--max-eval-contexts", type=int)
    arguments.add_argument("--repair", type=int, default=0, help="Rounds of joint repair of our files.")
    arguments.add_argument("--work", type=Path, help="Keep scores, times and files here.")
    given = arguments.parse_args()
    logging.disable(logging.WARNING)  # quantize_dynamic advises on the root logger
    source = open_source(given.model)
    limits = {k: getattr(given, k) for k in ("steps", "max_contexts", "max_eval_contexts")}
    sets = {"contexts": given.contexts or "made"} | (
        {} if given.evaluation in (None, "-") else {"evaluation": given.evaluation}
    )
    data = read_data(DataOptions(given.rollout, **sets, **limits), source)
    run = RunOptions("cpu", batch=given.batch, threads=given.threads)
    with tempfile.TemporaryDirectory(prefix="tqs-speedup-") as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        bed = Testbed(source.lifted, source.survey, data.spec, data.scoring, run)
        batch = 1 if data.spec.rollout.batch_axis is None else bed.fixed_batch or given.batch
        bed = bed.scaled(bed.sigma).on(data.evaluation)
        rivals = theirs(given.model, Path(folder))
        latency, _ = timed({"FP32": given.model} | rivals, data, batch, given.threads, given.rounds)
        nearest = [latency[n] for n in rivals]
        asked = [*nearest, *(min(nearest) * share for share in SHARES)]
        most = min(path.stat().st_size for path in rivals.values())
        mine: dict[str, Path] = {}
        for profile in given.profiles.split(","):
            kind: Profile = profile
            options = QuantizeOptions(
                budget=Budget(max_bytes=most),
                plan=PlanOptions(speedup=1.0),
                profile=kind,
                serving=Serving(),
                refine=RefineOptions(repair_rounds=given.repair),
                run=run,
            )
            mine |= dict(ours(source, data, options, asked, most, work))
        files = {"FP32": given.model, **rivals, **mine, **{str(p): p for p in given.files}}
        latency, found = timed(files, data, batch, given.threads, given.rounds)
        nominal = Kept(bed.stream_file(given.model))
        drift = {n: bed.drift(bed.stream_file(p)(), nominal()) for n, p in files.items()}
        print(f"\n{given.model}: {processor()}, {given.threads} thread, batch {batch}")
        print(f"{data.scoring.n_contexts} scoring and {data.evaluation.n_contexts} evaluation contexts\n")
        print("| file | MB | load | memory MB | latency | drift |\n|---|---:|---:|---:|---:|---:|")
        for name, path in files.items():
            laps = found[name]
            load, memory = paired(laps.load_s, found["FP32"].load_s), laps.resident_mb or float("nan")
            size = path.stat().st_size / 1e6
            print(
                f"| {name} | {size:.2f} | {load:.2f} | {memory:.1f} | {latency[name]:.3f} | {drift[name]:.4g} |"
            )
        print()
        for name in rivals if mine else ():
            print(verdict(name, list(mine), latency, drift))


if __name__ == "__main__":
    main()
