"""Scores a Pangu-shaped model (276.66 M random weights) in 28 blocks on one GPU, and times it against bare rollouts.

Paper: 11.5 h on an H200, contexts and draws unstated. Here: T = 4, 4 contexts, 4 gauss draws, then the quant probe;
each block has 8 of the 223 stored tensors, as in the paper; the two constant maps stay unchanged. Prints minutes, peak
GPU memory, and the ratio to the same number of bare rollouts: only the calls, in the plain session, nothing copied. Run
it again with the same --out to resume after a stop; the printed figures cover only the rollouts made in that run.
Without a GPU it says so and exits. Usage::

    python tools/bench_gpu.py --out run [--grid 721x1440] [--contexts 4] [--draws 4]
    python tools/bench_gpu.py --out run --provider cpu --grid 721x96 --contexts 1 --draws 1   # 16 GB of memory
    python tools/bench_gpu.py --out run --provider cpu --tiny --contexts 1 --draws 1
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tqs_models.pangu import rollout
from tqs_models.pangu.climate import states
from tqs_models.pangu.shaped import TINY, PanguShape, build
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import open_session, probe_provider
from tqs_onnx.rollout.spec.spec import load_spec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.measure.store import RESULTS_NAME, Results
from tqs_onnx.scoring.plan.options import Blocks, ScoreOptions
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind
from tqs_onnx.scoring.plan.sweep_plan import plan_sweep
from tqs_onnx.scoring.score import score
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model
from tqs_passes.weights import Origin


class GpuMemory:
    """Records the peak GPU memory reported by nvidia-smi; a context manager.

    Its text is a number of MB, or a dash if nvidia-smi is not available.
    """

    def __init__(self) -> None:
        self._tool = shutil.which("nvidia-smi")
        self._most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GpuMemory:
        """Start recording."""
        if self._tool is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop recording."""
        self._ended.set()
        if self._tool is not None:
            self._thread.join()

    def __str__(self) -> str:
        """Return the recorded peak."""
        return "–" if self._tool is None else f"{self._most} MB"

    def _watch(self) -> None:
        query = [str(self._tool), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._ended.wait(0.5):
            said = subprocess.run(query, check=False, capture_output=True, text=True).stdout.split("\n")[0]
            self._most = max(self._most, int(said) if said.strip().isdecimal() else 0)


def model_file(folder: Path, shape: PanguShape) -> Source:
    """Write the model once and open it."""
    path = folder / f"pangu_{shape.lat}x{shape.lon}.onnx"
    if not path.exists():
        save_model(Model(build(shape), folder), path, external=True)
    return open_source(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--grid", default="721x1440")
    parser.add_argument("--tiny", action="store_true", help="1.35 M weights on 49x96.")
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.provider == "cuda" and (why := probe_provider("cuda")) is not None:
        print(f"no GPU here: {why}")
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    lat, lon = (int(n) for n in given.grid.split("x"))
    shape = TINY if given.tiny else PanguShape(lat=lat, lon=lon)
    source, spec = model_file(given.out, shape), load_spec(rollout())
    contexts = Contexts(dict(states(shape.levels, shape.lat, shape.lon, given.contexts, 0)), {})
    survey = replace(
        source.survey, weights=tuple(w for w in source.survey.weights if w.origin is Origin.INITIALIZER)
    )
    n_values = sum(w.n_values for w in survey.weights)
    print(f"{n_values / 1e6:.2f} M weights in {len(survey.weights)} tensors, grid {shape.lat}x{shape.lon}")

    with GpuMemory() as memory:
        engine = Engine(open_session(source.path, provider=given.provider), spec, contexts)
        bare: list[float] = []
        for _ in range(4):
            start = time.perf_counter()
            for _ in engine.walk(extra=spec.trajectory.outputs):
                pass
            bare.append(time.perf_counter() - start)
        bare_s = statistics.median(bare[1:])
    print(f"one bare nominal rollout: {bare_s:.2f} s, GPU memory {memory}", flush=True)
    del engine

    gauss = ScoreOptions(
        probe=Probe(kind=ProbeKind.GAUSS, bits=8, draws=given.draws),
        response_bits=(),
        blocks=Blocks("stored:8"),
    )
    run = RunOptions(given.provider, threads=given.threads)
    bed = Testbed(source.lifted, survey, spec, contexts, run)
    total_s, counted = 0.0, 0
    for options in (gauss, replace(gauss, probe=Probe(kind=ProbeKind.QUANT, bits=8))):
        plan = plan_sweep(bed, source.sha256, options)
        keys = [r.key(plan.job) for group in plan.groups for t in group for r in plan.rollouts(t)]
        with Results(given.out / RESULTS_NAME) as results:
            n_kept = len(results.known(keys))
        n = len(keys) - n_kept + plan.n_sessions if n_kept < len(keys) else 0
        start = time.perf_counter()
        with GpuMemory() as memory:
            scores = score(
                *(bed, source.sha256, options),
                lambda done, total, label: print(f"  {done}/{total} {label}", file=sys.stderr, flush=True),
                store=given.out / RESULTS_NAME,
            )
        wall_s = time.perf_counter() - start
        rates = [w.gamma_task for w in scores.weights if w.gamma_task is not None]
        print(
            f"{options.probe.kind.value}: {plan.n_rollouts // options.probe.n_draws} blocks, {n_kept} rollouts kept "
            f"earlier, {n} counted now, {wall_s / 60:.2f} min, {ratio(wall_s, n * bare_s)} of the bare rollouts, "
            f"GPU memory {memory}, γ_task {np.min(rates):.3g} … {np.max(rates):.3g}",
            flush=True,
        )
        total_s, counted = total_s + wall_s, counted + n
    print(f"both: {total_s / 60:.2f} min, {ratio(total_s, counted * bare_s)} of the bare rollouts")
    return 0


def ratio(wall_s: float, bare_s: float) -> str:
    """Return a ratio of times, or a dash if nothing was rolled out."""
    return f"{wall_s / bare_s:.2f}" if bare_s else "–"


if __name__ == "__main__":
    sys.exit(main())
