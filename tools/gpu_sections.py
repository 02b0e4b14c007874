"""The sections of `bench_gpu.py`: each measures one thing on a provider, and returns it as Markdown."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import measure_forms
import numpy as np
import onnx
from onnx import numpy_helper, parser

import tqs_onnx as tqs
from tqs_models.pangu import rollout as pangu_rollout
from tqs_models.pangu.climate import states
from tqs_models.pangu.shaped import TINY, PanguShape, build
from tqs_onnx.inputs.bundled import demo_files
from tqs_onnx.inputs.source import Source, open_source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import Provider, RunOptions
from tqs_onnx.rollout.session import open_session
from tqs_onnx.rollout.spec.spec import RolloutSpec, load_spec, parse_spec
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.scoring.measure.desk import Desk
from tqs_onnx.scoring.measure.floors import SessionFloors
from tqs_onnx.scoring.measure.station import exposable_of
from tqs_onnx.scoring.measure.task import tasks_of
from tqs_onnx.scoring.plan.options import Blocks, ScoreOptions
from tqs_onnx.scoring.plan.probe import Probe, ProbeKind
from tqs_onnx.scoring.plan.sweep_plan import plan_sweep
from tqs_onnx.scoring.score import score
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model
from tqs_passes.plan.plan import Compute, ServingTarget
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier
from tqs_passes.weights import Origin

REPLACE = """version = 1
[rollout]
steps = 8
batch_axis = 0
[[feedback]]
output = "y"
input = "x"
mode = "replace"
[trajectory]
outputs = ["y"]
"""
#: Blocks of the Pangu-shaped model: 8 of its 223 stored tensors each, as in the paper.
PANGU_BLOCKS = Blocks("stored:8")


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how big: the provider, a folder for models, the grid of the big one, and when a sweep must end."""

    provider: Provider
    folder: Path
    tiny: bool
    threads: int
    grid: tuple[int, int]
    contexts: int
    until_s: float

    @property
    def run(self) -> RunOptions:
        """The options of rollouts on the provider."""
        return RunOptions(self.provider, threads=self.threads)


def network(setting: Setting) -> tuple[Source, RolloutSpec, Contexts]:
    """Write x' = 0.9 x + tanh(x W1 + b) W2, and return it with its spec and contexts."""
    width = 32 if setting.tiny else 1024
    graph = f"""(float[b, {width}] x) => (float[b, {width}] y) {{ p = MatMul(x, W1)  q = Add(p, b)  h = Tanh(q)
      r = MatMul(h, W2)  k = Mul(x, decay)  y = Add(k, r) }}"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    rng = np.random.default_rng(0)
    weights = {
        "W1": rng.standard_normal((width, 2 * width)) * width**-0.5,
        "b": 0.1 * rng.standard_normal(2 * width),
        "W2": rng.standard_normal((2 * width, width)) * (2 * width) ** -0.5 / 2,
        "decay": np.full(width, 0.9),
    }
    proto.graph.initializer.extend(
        numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()
    )
    path = setting.folder / "network.onnx"
    onnx.save(proto, path)
    x = rng.standard_normal((8, width)).astype(np.float32)
    return open_source(path), parse_spec(REPLACE), Contexts({"x": x}, {})


def correctness(setting: Setting) -> str:
    """Compare rollouts and scores with those of the CPU, and with themselves."""
    source, spec, contexts = network(setting)
    rolled, scores = {}, {}
    for where in ("cpu", setting.provider, setting.provider):
        run = RunOptions(where, threads=setting.threads)
        bed = Testbed(source.lifted, source.survey, spec, contexts, run)
        rolled.setdefault(where, []).append(bed.exposed.run({}).outputs["y"].astype(np.float64))
        scores.setdefault(where, []).append(score(bed, source.sha256, ScoreOptions()))
    here, there = rolled["cpu"][0], rolled[setting.provider][-1]
    gap = float(np.abs(there - here).max() / here.std())
    rates = [
        abs(a.gamma_task - b.gamma_task)
        for a, b in zip(scores["cpu"][0].weights, scores[setting.provider][-1].weights, strict=True)
        if a.gamma_task is not None and b.gamma_task is not None
    ]
    again = scores[setting.provider][-1].to_json() == scores[setting.provider][-2].to_json()
    assert gap < 1e-3, f"rollouts differ from the CPU's by {gap:.3g} σ"
    assert max(rates) < 1e-2, f"γ differs from the CPU's by {max(rates):.3g}"
    assert again, "the same sweep gave other bits"
    return (
        f"8 steps of two {source.survey.weights[0].shape} products: {gap:.2g} σ from the CPU's; γ_task of "
        f"{len(rates)} weights differs by at most {max(rates):.2g}; the same sweep gives the same bits; noise floor "
        f"{scores[setting.provider][-1].noise_floor:.2g}."
    )


def tf32(setting: Setting) -> str:
    """Measure the errors of one product and of a rollout, under the options of scoring and of a server."""
    source, spec, contexts = network(setting)
    wide = {
        t.name: numpy_helper.to_array(t).astype(np.float64) for t in source.lifted.proto.graph.initializer
    }
    states_ = [contexts.arrays["x"].astype(np.float64)]
    for _ in range(spec.rollout.steps):
        x = states_[-1]
        states_.append(wide["decay"] * x + np.tanh(x @ wide["W1"] + wide["b"]) @ wide["W2"])
    exact = np.stack(states_[1:], axis=1)
    rows = []
    for name, options in (("scoring", setting.run.for_scoring()), ("server", setting.run.for_serving())):
        session = open_session(source.path, provider=setting.provider, options=options)
        made = Engine(session, spec, contexts).run().outputs["y"].astype(np.float64)
        errors = np.sqrt(((made - exact) ** 2).mean(axis=(0, 2)))
        rows.append(f"| {name} | {errors[0]:.2e} | {errors[-1]:.2e} |")
    return "\n".join(
        ["| options | rms error after 1 step | after 8 |", "|---|---:|---:|", *rows, "", "Against float64."]
    )


def placement(setting: Setting) -> str:
    """Count the nodes that stay on the CPU."""
    demo = demo_files()
    models = {
        "lorenz96": demo.model,
        "network": network(setting)[0].path,
        "Pangu-shaped, tiny": pangu(TINY, setting),
    }
    lines = []
    for name, path in models.items():
        found = open_session(path, provider=setting.provider).placement
        lines.append(f"- {name}: {found or 'not told (the CPU, or an old runtime)'}")
    return "\n".join(lines)


def forms(setting: Setting) -> str:
    """Measure every form for the commonest readers."""
    names, rounds, tiers = ["MatMul", "Gemm", "Gather", "Conv 3x3"], 5, measure_forms.TIERS
    if setting.tiny:
        names, rounds, tiers = names[:1], 1, (Tier.INT4,)
    document: dict[str, dict[str, object]] = {}
    for name in names:
        if document and time.monotonic() > setting.until_s:
            break
        rows = measure_forms.measured(name, rounds, setting.provider, tiers)
        document[name] = {"where": setting.provider, "rows": rows}
    left = [name for name in names if name not in document]
    text = measure_forms.markdown(document).partition("\n\n")[2]
    return text + (f"\nNo time was left for {', '.join(left)}.\n" if left else "")


def blocks(setting: Setting) -> str:
    """Write files whose blocks compute in 16 bits, and verify and time them."""
    source, spec, contexts = network(setting)
    judged = Contexts({"x": contexts.arrays["x"][4:]}, {})
    data = tqs.load_data(source, spec, Contexts({"x": contexts.arrays["x"][:4]}, {}), judged)
    lines = [
        "| computes with | drift | runtime gap | TF32 gap | latency | on the CPU |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for kind in (None, "float16", "bfloat16"):
        compute = None if kind is None else Compute(dtype=kind)
        target = ServingTarget.ORT_CPU if setting.provider == "cpu" else ServingTarget.ORT_CUDA
        try:
            options = tqs.QuantizeOptions(
                tqs.Budget(1.8),
                serving=Serving(target=target, compute=compute),
                refine=tqs.RefineOptions(repair_rounds=0),
                timing=not setting.tiny,
                run=setting.run,
            )
            v = tqs.quantize(source, data, options, setting.folder / f"run-{kind}").verification
        except InputError as error:
            if setting.provider != "cpu":  # a GPU computes with both types
                raise
            lines.append(f"| {kind} | refused: {error.what} | | | | |")
            continue
        latency = "–" if v.timing is None else "{1:.2f} at {0}".format(*max(v.timing.latency.items()))
        gap = "–" if v.tf32_gap is None else f"{v.tf32_gap:.2g}"
        where = "–" if v.placement is None else str(v.placement)
        lines.append(
            f"| {kind or 'float32'} | {v.drift.total:.3g} | {v.runtime_gap:.2g} | {gap} | {latency} | {where} |"
        )
    return "\n".join(lines)


def pangu(shape: PanguShape, setting: Setting) -> Path:
    """Write a Pangu-shaped model once."""
    path = setting.folder / f"pangu_{shape.lat}x{shape.lon}.onnx"
    if not path.exists():
        save_model(Model(build(shape), setting.folder), path, external=True)
    return path


def sweep(setting: Setting) -> str:
    """Score the big model block by block until the time is over, and extrapolate to all blocks."""
    lat, lon = setting.grid
    shape = TINY if setting.tiny else PanguShape(lat=lat, lon=lon)
    source, spec = open_source(pangu(shape, setting)), load_spec(pangu_rollout())
    contexts = Contexts(dict(states(shape.levels, shape.lat, shape.lon, setting.contexts, 0)), {})
    stored = tuple(w for w in source.survey.weights if w.origin is Origin.INITIALIZER)
    survey = replace(source.survey, weights=stored)
    bare_s = bare(source, spec, contexts, setting)
    probe = Probe(kind=ProbeKind.QUANT, bits=8)
    bed = Testbed(source.lifted, survey, spec, contexts, setting.run)
    plan = plan_sweep(bed, source.sha256, ScoreOptions(probe=probe, response_bits=(), blocks=PANGU_BLOCKS))
    start = time.monotonic()
    desk = Desk(plan, exposable_of(plan))
    frame = desk.frame()
    opened_s = time.monotonic() - start
    n_measured, begun = 0, time.monotonic()
    floors_s = 0.0
    until = begun if setting.tiny else setting.until_s
    for found in desk.measure(frame, tasks_of(plan, (), {})[0]):
        if isinstance(found, SessionFloors):
            floors_s, begun = time.monotonic() - begun, time.monotonic()
            continue
        n_measured += len(found)
        if time.monotonic() > until:
            break
    each_s = (time.monotonic() - begun) / n_measured
    all_s = opened_s + floors_s + plan.n_rollouts * each_s
    n_values = sum(w.n_values for w in stored)
    return (
        f"{n_values / 1e6:.2f} M weights in {len(stored)} tensors on {shape.lat} x {shape.lon}, {spec.rollout.steps} "
        f"steps, {setting.contexts} contexts, one quant probe a block: {n_measured} of {plan.n_rollouts} blocks "
        f"measured, {each_s:.2f} s each; opening {opened_s:.1f} s, floors {floors_s:.1f} s; all blocks "
        f"{all_s / 60:.2f} min{' (extrapolated)' if n_measured < plan.n_rollouts else ''}. A bare rollout takes "
        f"{bare_s:.2f} s: a measured one takes {each_s / bare_s:.2f} of it, the sweep "
        f"{all_s / (bare_s * (plan.n_rollouts + 3)):.2f} of as many bare ones."
    )


def bare(source: Source, spec: RolloutSpec, contexts: Contexts, setting: Setting) -> float:
    """Return the median seconds of a rollout of the plain file of which nothing is copied to the host."""
    session = open_session(source.path, provider=setting.provider, options=setting.run.for_scoring())
    engine = Engine(session, spec, contexts)
    seconds: list[float] = []
    for _ in range(2 if setting.tiny else 3):
        start = time.monotonic()
        for _ in engine.walk(extra=spec.trajectory.outputs):
            pass
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds[1:])
