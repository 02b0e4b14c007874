"""Are quantile heads the most sensitive weights of a forecaster, or dead? The paper says both (A.4, A.11.2).

timesfm_mini has none, so it gets one in the manner of TimesFM's: a residual block of three matrices beside the point
head, reading the same vector, trained here on the pinball loss for nine quantiles of ETTh1's training rows ::

    x ──▶ point head ──▶ forecast [b, 128] ──▶ fed back
      └─▶ quantile head ──▶ quantiles [b, 128, 9], fed to nobody

It is scored with the forecast as its trajectory, and with both outputs.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tools.study.markdown import markdown
from tools.study.protocols import BOTH, Size
from tools.study.runs import Runs
from tools.study.section import Claim, Section
from tools.study.zoo import ZOO, zoo_module
from tqs_onnx.analysis.sensitivity import percentiles
from tqs_onnx.scoring.scores import Scores, Status, read_scores

LEVELS = np.arange(1, 10) / 10
WIDTH, HIDDEN, OUTPUT, WINDOW = 128, 64, 128, 512
PARTS = ("quantile.hidden.weight", "quantile.output.weight", "quantile.skip.weight")
#: Tensors of timesfm_mini: what its head reads, its scale, and the last value of the window.
READS, SCALE, LAST = "LayerNormalization_188", "Slice_186", "Slice_187"
RUNS = {"the forecast alone": "heads.point", "forecast and quantiles": "heads.both"}
Floats = NDArray[np.float64]

SPEC = """version = 1
[rollout]
steps = 4
batch_axis = 0
[[feedback]]
output = "forecast"
input = "context"
mode = "shift"
axis = 1
[trajectory]
outputs = [{outputs}]
time_axis = 1
"""


def windows(first: int, last: int, stride: int) -> tuple[NDArray[np.float32], Floats]:
    """Return windows ``[n, 512]`` of the standardised columns of ETTh1, and the 128 values after each."""
    table = next(t for t in zoo_module("timesfm_mini.data").load_tables() if t.name == "ETTh1")
    train = table.values[slice(*table.split.train)]
    values = ((table.values - train.mean(0)) / train.std(0)).T
    starts = range(first, last - WINDOW - OUTPUT, stride)
    x = np.concatenate([values[:, s : s + WINDOW] for s in starts])
    y = np.concatenate([values[:, s + WINDOW : s + WINDOW + OUTPUT] for s in starts])
    return x.astype(np.float32), y


def trained(read: Floats, target: Floats, steps: int) -> dict[str, Floats]:
    """Return the head that minimises the pinball loss of `target` ``[n, 128]`` from `read` ``[n, 128]``, by Adam."""
    rng = np.random.default_rng(0)
    n_out = OUTPUT * len(LEVELS)
    head = {
        "hidden.weight": rng.standard_normal((WIDTH, HIDDEN)) * WIDTH**-0.5,
        "hidden.bias": 0.01 * rng.standard_normal(HIDDEN),
        "output.weight": 0.1 * rng.standard_normal((HIDDEN, n_out)) * HIDDEN**-0.5,
        "output.bias": np.tile(np.quantile(target, LEVELS), OUTPUT),
        "skip.weight": 0.1 * rng.standard_normal((WIDTH, n_out)) * WIDTH**-0.5,
    }
    moments = {k: (np.zeros_like(v), np.zeros_like(v)) for k, v in head.items()}
    for step in range(1, steps + 1):
        rows = rng.integers(0, len(read), 64)
        x, y = read[rows], target[rows]
        z = x @ head["hidden.weight"] + head["hidden.bias"]
        gate = 1 / (1 + np.exp(-z))
        h = z * gate
        made = (h @ head["output.weight"] + head["output.bias"] + x @ head["skip.weight"]).reshape(
            -1, OUTPUT, len(LEVELS)
        )
        loss = (((y[..., None] < made) - LEVELS) / len(rows)).reshape(len(rows), -1)
        inner = (loss @ head["output.weight"].T) * gate * (1 + z * (1 - gate))
        gradients = {
            "hidden.weight": x.T @ inner,
            "hidden.bias": inner.sum(0),
            "output.weight": h.T @ loss,
            "output.bias": loss.sum(0),
            "skip.weight": x.T @ loss,
        }
        for name, gradient in gradients.items():
            first, second = moments[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            head[name] -= 0.003 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return head


def with_head(head: dict[str, Floats]) -> onnx.ModelProto:
    """Return timesfm_mini with a quantile head."""
    proto = onnx.load(ZOO / "timesfm_mini" / "model.onnx")
    graph = proto.graph
    for name, value in head.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), f"quantile.{name}"))
    shape = numpy_helper.from_array(np.array([-1, OUTPUT, len(LEVELS)]), "quantile_shape")
    column = numpy_helper.from_array(np.array([-1, 1, 1]), "column_shape")
    graph.initializer.extend([shape, column])
    nodes = [
        ("MatMul", [READS, "quantile.hidden.weight"], "qh"),
        ("Add", ["qh", "quantile.hidden.bias"], "qz"),
        ("Sigmoid", ["qz"], "qs"),
        ("Mul", ["qz", "qs"], "qa"),
        ("MatMul", ["qa", "quantile.output.weight"], "qo"),
        ("Add", ["qo", "quantile.output.bias"], "qb"),
        ("MatMul", [READS, "quantile.skip.weight"], "qk"),
        ("Add", ["qb", "qk"], "qflat"),
        ("Reshape", ["qflat", "quantile_shape"], "qspread"),
        ("Reshape", [SCALE, "column_shape"], "qscale"),
        ("Reshape", [LAST, "column_shape"], "qlast"),
        ("Mul", ["qspread", "qscale"], "qscaled"),
        ("Add", ["qscaled", "qlast"], "quantiles"),
    ]
    graph.node.extend(helper.make_node(op, inputs, [output]) for op, inputs, output in nodes)
    wide = ["batch", OUTPUT, len(LEVELS)]
    graph.output.append(helper.make_tensor_value_info("quantiles", TensorProto.FLOAT, wide))
    onnx.checker.check_model(proto)
    return proto


def read_by_the_head(x: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    """Return what the head of timesfm_mini reads ``[n, 128]``, and scale and last value of each window ``[n, 1]``."""
    proto = onnx.load(ZOO / "timesfm_mini" / "model.onnx")
    for name in (READS, SCALE, LAST):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([READS, SCALE, LAST], {"context": x})
    read, scale, last = (np.asarray(a, np.float64).reshape(len(x), -1) for a in found)
    return read, scale, last


def score_heads(runs: Runs, size: Size) -> None:
    """Train the head, and score the model with and without its quantiles in the trajectory."""
    folder = runs.folder / "heads"
    model = folder / "model.onnx"
    if not model.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        x, y = windows(0, 8640, 48)
        read, scale, last = read_by_the_head(x)
        onnx.save(with_head(trained(read, (y - last) / scale, size.training)), model)
        held, _ = windows(8640 - WINDOW, 11520, 2000)
        np.savez(folder / "contexts.npz", context=held[: 2 * size.scoring])
    for outputs, name in (('"forecast"', "heads.point"), ('"forecast", "quantiles"', "heads.both")):
        spec = folder / f"{name}.toml"
        spec.write_text(SPEC.format(outputs=outputs), encoding="utf-8")
        runs.run(name, "score", model, "--rollout", spec, "--contexts", folder / "contexts.npz", *BOTH)


def section(runs: Runs) -> Section:
    """Return what both scorings say of the heads."""
    rows: list[list[str]] = []
    statuses: dict[str, set[Status]] = {}
    highest: list[float] = []
    for what, name in RUNS.items():
        scores = read_scores(runs.folder / name / "scores.json")
        matrices = _matrices(scores)
        percentile = percentiles(matrices)
        by_name = {w.weight: w for w in matrices.weights}
        statuses[name] = {by_name[p].status for p in PARTS}
        for part in PARTS:
            place = f"{percentile[part]:.0f}" if part in percentile else "–"
            rows.append([what, part, by_name[part].status.value, place])
        if name == RUNS["forecast and quantiles"]:
            highest = [percentile[p] for p in PARTS if p in percentile]
    dead = statuses["heads.point"] <= {Status.DEAD, Status.OFF_TRAJECTORY}
    head = ["trajectory", "matrix of the quantile head", "status", "percentile of γ among the matrices"]
    return Section(
        "A.4 and A.11.2: quantile heads, most sensitive and dead",
        "timesfm_mini with a quantile head of three matrices, trained on the pinball loss. Paper: the three matrices "
        "are dead (γ = −69, A.4) and ten times as sensitive as any inner one (A.11.2). Both follow from what counts "
        "as the forecast: a head that is not fed back moves no point forecast, and moves its own output directly.\n\n"
        f"{markdown(head, rows)}",
        tuple(RUNS.values()),
        claims=(
            Claim("quantile heads are dead (A.4)", "with the point forecast as the trajectory", dead),
            Claim(
                "quantile heads are the most sensitive weights (A.11.2)",
                "with the quantiles in the trajectory: percentiles " + ", ".join(f"{p:.0f}" for p in highest),
                bool(highest) and min(highest) > 90,
            ),
        ),
    )


def _matrices(scores: Scores) -> Scores:
    kept = tuple(w for w in scores.weights if sum(n > 1 for n in w.shape) >= 2)
    return scores.model_copy(update={"weights": kept})
