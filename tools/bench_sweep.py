"""Measures the overhead of scoring: wall(scoring) / (rollouts × wall of one bare nominal rollout).

The bare rollout runs in the plain, fully optimised session of the same model. Rollouts include the perturbed ones and
one nominal rollout per session (`+ floors` also includes the two rollouts per session that measure its floors). `cpu`
is the same ratio in processor time, which other load disturbs less and which includes the work of the preparing
thread. `naive` is the naive way for the biggest weight, in bare rollouts: it serializes the model and opens a new
session. Usage::

    python tools/bench_sweep.py [--quick] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec, load_spec, parse_spec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.probe import Probe, perturbed
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_onnx.scoring.plan.sweep_plan import plan_sweep
from tqs_onnx.scoring.score import score

WIDTH, HIDDEN, LAYERS, TOKENS = 512, 2048, 6, 16
REPLACE = """version = 1
[rollout]
steps = {steps}
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[trajectory]
outputs = ["y"]
"""


def transformer(width: int = WIDTH, hidden: int = HIDDEN, layers: int = LAYERS) -> onnx.ModelProto:
    """Return a transformer (by default 76 MB) with random weights that maps a state [batch, 16, width] to the next.

    Attention has one head. Its scores are divided by the root of the width, as usual: without that each token would
    attend to one other only, and any rounding could change which.
    """
    rng = np.random.default_rng(0)
    stored: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int, scale: float | None = None) -> str:
        size = shape[0] ** -0.5 if scale is None else scale
        stored.append(numpy_helper.from_array((size * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    stored.append(numpy_helper.from_array(np.array(width**-0.5, np.float32), "root"))
    x = "x"
    for i in range(layers):
        scale, shift = weight(f"norm{i}.scale", width, scale=1.0), weight(f"norm{i}.bias", width, scale=0.1)
        h = node("LayerNormalization", [x, scale, shift], f"n{i}", axis=-1)
        q, k, v = (node("MatMul", [h, weight(f"{c}{i}", width, width)], f"h{c}{i}") for c in "qkv")
        kt = node("Transpose", [k], f"t{i}", perm=[0, 2, 1])
        scores = node("Mul", [node("MatMul", [q, kt], f"s{i}"), "root"], f"z{i}")
        share = node("Softmax", [scores], f"p{i}", axis=-1)
        mixed = node("MatMul", [share, v], f"a{i}")
        r = node("Add", [x, node("MatMul", [mixed, weight(f"o{i}", width, width)], f"b{i}")], f"r{i}")
        up = node("MatMul", [r, weight(f"up{i}", width, hidden)], f"u{i}")
        active = node("Relu", [node("Add", [up, weight(f"bias{i}", hidden, scale=0.1)], f"w{i}")], f"g{i}")
        x = node("Add", [r, node("MatMul", [active, weight(f"down{i}", hidden, width)], f"d{i}")], f"x{i}")
    node("Tanh", [x], "y")
    shape = ["b", TOKENS, width]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "bench", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@dataclass(frozen=True)
class Row:
    """One configuration and its times in seconds."""

    name: str
    sessions: int
    n_rollouts: int
    bare_s: float
    sweep_s: float
    naive_s: float
    bare_cpu_s: float
    sweep_cpu_s: float
    how: str

    def text(self) -> str:
        """Return the row of the table."""
        counted = (self.n_rollouts + self.sessions) * self.bare_s
        floors = (self.n_rollouts + 3 * self.sessions) * self.bare_s
        cpu = self.sweep_cpu_s / ((self.n_rollouts + self.sessions) * self.bare_cpu_s)
        naive = self.naive_s / self.bare_s
        return (
            f"{self.name:32} {self.how:>10} {self.sessions:8} {self.n_rollouts:8} "
            f"{1e3 * self.bare_s:9.1f} {self.sweep_s:8.2f} "
            f"{self.sweep_s / counted:7.2f} {self.sweep_s / floors:9.2f} {cpu:7.2f} {naive:8.2f}"
        )


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time and the processor time of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def medians(found: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of the wall times and that of the processor times."""
    wall, cpu = zip(*found, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def measure(
    name: str,
    source: Source,
    spec: RolloutSpec,
    contexts: Contexts,
    threads: int,
    repeats: int,
    strategy: Strategy | None,
) -> Row:
    """Time scoring with a single quant probe per weight, the bare rollout before and after it, and the naive way."""
    options = ScoreOptions(response_bits=(), strategy=strategy)
    run = RunOptions("cpu", contexts.n_contexts, threads)
    bed = Testbed(source.lifted, source.survey, spec, contexts, run)
    session = open_session(source.path, options=SessionOptions(threads=threads))
    engine = Engine(session, spec, contexts, batch=run.batch)
    engine.run()
    bare = [timed(engine.run) for _ in range(5)]
    swept: list[tuple[float, float]] = []
    for _ in range(repeats):
        swept.append(timed(lambda: score(bed, source.sha256, options)))
        bare += [timed(engine.run) for _ in range(5)]
    plan = plan_sweep(bed, source.sha256, options)
    bare_s, bare_cpu_s = medians(bare)
    sweep_s, sweep_cpu_s = medians(swept)
    naive_s, _ = medians([timed(lambda: naive(source, spec, contexts, threads)) for _ in range(3)])
    return Row(
        *(
            name,
            len(plan.groups),
            plan.n_rollouts,
            bare_s,
            sweep_s,
            naive_s,
            bare_cpu_s,
            sweep_cpu_s,
            plan.how + (" cut" if plan.prefix else ""),
        )
    )


def naive(source: Source, spec: RolloutSpec, contexts: Contexts, threads: int) -> None:
    """Score one weight as a script would: change it in the file, serialize, open a session, roll out."""
    weight = max(source.survey.weights, key=lambda w: w.n_values)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.lifted.proto)
    tensor = next(t for t in proto.graph.initializer if t.name == weight.name)
    theta = numpy_helper.to_array(tensor)
    tensor.raw_data = perturbed(theta, Probe(), weight.name, 0, None)[0].tobytes()
    session = open_session(proto.SerializeToString(), options=SessionOptions(threads=threads))
    Engine(session, spec, contexts, batch=contexts.n_contexts).run()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="One repeat, T = 1 and 8.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--groups", type=int, default=0, help="Expose in so many sessions; 0: the cost model."
    )
    parser.add_argument("--rebuild", action="store_true", help="Build a session per rollout.")
    parser.add_argument("--only", default="", help="Configurations whose name holds this.")
    given = parser.parse_args()
    repeats = 1 if given.quick else 3
    forced = Strategy("rebuild", 1) if given.rebuild else None
    forced = Strategy("expose", given.groups) if given.groups else forced
    print(
        f"{'configuration':32} {'how':>10} {'sessions':>8} {'rollouts':>8} {'bare (ms)':>9} {'sweep(s)':>8} "
        f"{'ratio':>7} {'+ floors':>9} {'cpu':>7} {'naive':>8}"
    )
    with tempfile.TemporaryDirectory(prefix="tqs-bench-") as folder:
        path = Path(folder) / "transformer.onnx"
        onnx.save(transformer(), path)
        source = open_source(path)
        rng = np.random.default_rng(1)
        for steps in (1, 8 if given.quick else 32):
            for n in (1, 16):
                state = 0.5 * rng.standard_normal((n, TOKENS, WIDTH)).astype(np.float32)
                name = f"transformer T={steps} contexts={n}"
                if given.only in name:
                    few = 1 if steps * n > 64 else repeats
                    spec = parse_spec(REPLACE.format(steps=steps))
                    row = measure(name, source, spec, Contexts({"x": state}, {}), given.threads, few, forced)
                    print(row.text(), flush=True)
        zoo = Path(__file__).resolve().parents[1] / "models" / "zoo" / "timesfm_mini"
        source = open_source(zoo / "model.onnx")
        for steps in (1, 32):
            for n in (1, 16):
                name = f"timesfm_mini T={steps} contexts={n}"
                if given.only in name:
                    spec = load_spec(zoo / "rollout.toml")
                    rollout = spec.rollout.model_copy(update={"steps": steps, "length": None})
                    spec = spec.model_copy(update={"rollout": rollout})
                    waves = np.sin(np.arange(512) / 8 + np.arange(n)[:, None]).astype(np.float32)
                    contexts = Contexts({"context": waves}, {})
                    row = measure(name, source, spec, contexts, given.threads, repeats, forced)
                    print(row.text(), flush=True)


if __name__ == "__main__":
    main()
