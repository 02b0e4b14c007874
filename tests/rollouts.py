"""Small rollout models with answers that can be worked out by hand, and the files a command needs to run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.spec.spec import RolloutSpec, parse_spec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.plan.probe import Probe
from tqs_onnx.scoring.score import ScoreOptions, score
from tqs_onnx.scoring.scores import Scores
from tqs_onnx.verification.subject import Subject

Floats = NDArray[np.float32]

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


def model(graph: str, weights: dict[str, Floats], *, opset: int = 17) -> onnx.ModelProto:
    """Return a checked model: the graph as ONNX text, `weights` as its initializers."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {graph}')
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    onnx.checker.check_model(proto)
    return proto


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    """Return normal values, float32."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def spec_of(steps: int = 4, more: str = "") -> RolloutSpec:
    """Return the spec of a model whose output y becomes its input x."""
    return parse_spec(REPLACE.format(steps=steps) + more)


def linear(matrix: Floats) -> onnx.ModelProto:
    """Return x' = x · A."""
    n = len(matrix)
    return model(f"(float[b, {n}] x) => (float[b, {n}] y) {{ y = MatMul(x, A) }}", {"A": matrix})


def forecaster(width: int = 16, hidden: int = 48, seed: int = 0) -> onnx.ModelProto:
    """Return x' = 0.9 x + tanh(x · W1 + b1) · W2 + b2: two matrices, two biases, a scalar."""
    graph = f"""(float[b, {width}] x) => (float[b, {width}] y) {{
      p = MatMul(x, W1)  q = Add(p, b1)  h = Tanh(q)
      r = MatMul(h, W2)  s = Add(r, b2)  k = Mul(x, decay)  y = Add(k, s) }}"""
    weights = {
        "W1": values(width, hidden, seed=seed, scale=width**-0.5),
        "b1": values(hidden, seed=seed + 1, scale=0.1),
        "W2": values(hidden, width, seed=seed + 2, scale=0.5 * hidden**-0.5),
        "b2": values(width, seed=seed + 3, scale=0.1),
        "decay": np.full(width, 0.9, np.float32) + values(width, seed=seed + 4, scale=0.01),
    }
    return model(graph, weights)


def motley(*, unstable: bool = True) -> onnx.ModelProto:
    """Return a model with a weight of every status.

    W alive; D multiplied by zero; U one that rounding to 6 bits makes 0 and log infinite; G all ones; O feeds the
    output z only, which is outside the trajectory.
    """
    graph = """(float[b, 6] x) => (float[b, 6] y, float[b, 6] z) {
      p = MatMul(x, W)  none = Sub(x, x)  d = MatMul(none, D)  q = Add(p, d)
      n = Mul(q, G)  l = Log(U)  m = Mul(l, none)  y = Add(n, m)  z = MatMul(x, O) }"""
    weights = {
        "W": values(6, 6, seed=1, scale=0.4),
        "D": values(6, 6, seed=2),
        "G": np.ones(6, np.float32),
        "U": np.array([1.0, 1e-4 if unstable else 0.8, 0.7, 0.9, 0.6, 0.8], np.float32),
        "O": values(6, 6, seed=3),
    }
    return model(graph, weights)


@dataclass(frozen=True, slots=True)
class Case:
    """A model on disk with its rollout, contexts and truth."""

    model: Path
    rollout: Path
    contexts: Path
    evaluation: Path

    def arguments(self, *more: str) -> list[str]:
        """Return the arguments that quantize and verify share: one thread, the two sets of contexts."""
        files = ["--rollout", str(self.rollout), "--contexts", str(self.contexts)]
        return [*files, "--eval-contexts", str(self.evaluation), "--threads", "1", *more]


def write_case(
    folder: Path, proto: onnx.ModelProto, *, steps: int = 4, n: int = 3, truth: bool = True, more: str = ""
) -> Case:
    """Write a model and all a job needs into a folder; the truth is noise around zero."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(folder / "m.onnx", folder / "rollout.toml", folder / "contexts.npz", folder / "eval.npz")
    onnx.save(proto, case.model)
    case.rollout.write_text(REPLACE.format(steps=steps) + more)
    width = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    np.savez(case.contexts, x=values(n, width, seed=10))
    extra = {"truth/y": values(n, steps, width, seed=12)} if truth else {}
    np.savez(case.evaluation, x=values(n, width, seed=11), **extra)
    return case


def opened(folder: Path, proto: onnx.ModelProto) -> Source:
    """Return a model written into a folder and opened."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "m.onnx")
    return open_source(folder / "m.onnx")


def scored(
    source: Source, spec: RolloutSpec, x: Floats, probe: Probe | None = None, **changes: object
) -> Scores:
    """Return the scores of a source on contexts x, one thread."""
    names = ("provider", "batch", "threads", "max_memory")
    run = {name: changes.pop(name) for name in names if name in changes}
    bed = bed_of(source, spec, Contexts({"x": x}, {}), **run)
    return score(bed, source.sha256, ScoreOptions(**({"probe": probe or Probe()} | changes)))


def bed_of(
    source: Source,
    spec: RolloutSpec,
    contexts: Contexts,
    sigma: dict[str, float] | None = None,
    **run: object,
) -> Testbed:
    """Return where a source is rolled out, by default on the CPU with one thread."""
    options = RunOptions(**({"provider": "cpu", "threads": 1} | run))
    return Testbed(source.lifted, source.survey, spec, contexts, options, sigma)


def judging(
    subject: Subject, spec: RolloutSpec, contexts: Contexts, sigma: dict[str, float] | None = None
) -> Testbed:
    """Return where a subject is verified: on the CPU with one thread, σ 1 unless given."""
    sigma = dict.fromkeys(spec.trajectory.outputs, 1.0) if sigma is None else sigma
    return Testbed(subject.lifted, subject.survey, spec, contexts, RunOptions("cpu", threads=1), sigma)
