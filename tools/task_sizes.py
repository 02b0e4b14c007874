"""Measures what a sweep sends over a network: the model once per node, a task and its result for every rollout.

Nothing is rolled out: the sizes are those of the pickled objects that Ray sends, for the plan of `tqs score` with the
same options. With `--rollout-s`, the seconds of one rollout as `tqs score --dry-run` prints them, it also says how long
N workers take, and what they send a second. Usage::

    python tools/task_sizes.py model.onnx --rollout rollout.toml --contexts contexts.npz --blocks stored:8
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.measure.station import exposable_of
from tqs_onnx.scoring.measure.store import RESULTS_NAME, Results
from tqs_onnx.scoring.measure.task import parts_of, tasks_of
from tqs_onnx.scoring.plan.options import Blocks, ScoreOptions
from tqs_onnx.scoring.plan.sweep_plan import plan_sweep
from tqs_onnx.scoring.workers.ray_shipment import Bytes, pack


def size(thing: object) -> int:
    """Return the bytes of an object as it is sent."""
    return len(pickle.dumps(thing, protocol=5))


def stored_per_s(result: Measurement, n: int = 2000) -> float:
    """Return how many results the driver stores in a second, each in a transaction of its own."""
    with tempfile.TemporaryDirectory() as folder, Results(Path(folder) / RESULTS_NAME) as results:
        results.put_frame("job", "{}", "{}")
        start = time.perf_counter()
        for i in range(n):
            results.put("job", [(f"{i:064d}", result)])
        return n / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rollout", type=Path, required=True)
    parser.add_argument("--contexts", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--blocks", help="See tqs score --blocks.")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rollout-s", type=float)
    given = parser.parse_args()
    source = open_source(given.model)
    data = read_data(DataOptions(given.rollout, given.contexts, steps=given.steps), source, scoring_only=True)
    run = RunOptions("cpu")
    bed = Testbed(source.lifted, source.survey, data.spec, data.scoring, run)
    options = ScoreOptions(blocks=Blocks(given.blocks) if given.blocks else None)
    plan = plan_sweep(bed, source.sha256, options)
    # A GPU exposes all weights in one session, whatever is cheapest here.
    plan = replace(plan, groups=(tuple(t for group in plan.groups for t in group),))
    weights: list[int] = []

    def put(_: str, content: Bytes) -> None:
        weights.append(content.nbytes)

    shipment = pack(plan, exposable_of(plan), put)
    tasks = tasks_of(plan, (), {})
    parts = parts_of(plan, tasks, given.workers)
    n = plan.contexts.n_contexts
    result = Measurement(np.zeros((n, len(plan.horizons))), np.zeros(len(data.spec.variable) or 1), 1.0, 1)
    task_bytes = [size(part) for part in parts]
    rows = [
        ("weights, once per node", sum(weights), f"{len(weights)} objects, the biggest {max(weights):,}"),
        (
            "plan, graph and contexts, once per node",
            size(shipment),
            f"contexts {size(shipment.plan.contexts):,}",
        ),
        (
            "a task",
            max(task_bytes),
            f"{len(parts)} tasks of at most {max(len(p.todo) for p in parts)} rollouts",
        ),
        (
            "the result of a rollout",
            size((("0" * 64, result),)),
            f"{n} contexts, {len(plan.horizons)} horizons",
        ),
    ]
    print(f"{plan.n_rollouts} rollouts of {len(plan.groups[0])} targets\n")
    print("| what is sent | bytes | |\n|---|---:|---|")
    for what, n_bytes, note in rows:
        print(f"| {what} | {n_bytes:,} | {note} |")
    print(f"\nThe driver stores {stored_per_s(result):,.0f} results a second here.")
    if given.rollout_s:
        rounds = -(-plan.n_rollouts // given.workers)
        wall = rounds * given.rollout_s
        sent = plan.n_rollouts * (rows[2][1] / max(len(p.todo) for p in parts) + rows[3][1])
        print(
            f"\n{given.workers} workers: {rounds} rollouts in a row, {wall:.1f} s and the opening of a session; "
            f"{sent / wall / 1e6:.3f} MB/s of tasks and results at the driver"
        )


if __name__ == "__main__":
    main()
