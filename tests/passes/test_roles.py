"""Role buckets (paper, A.8): found from the graph, and overridden by patterns."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from tqs_models.pangu import shaped
from tqs_models.pangu.shaped import TINY, PanguShape
from tqs_onnx.cli.main import main
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model, load_model
from tqs_passes.survey.roles import with_roles
from tqs_passes.survey.survey import find_weights, survey
from tqs_passes.weights import Role, Survey

ZOO = Path(__file__).parents[2] / "models" / "zoo"
A8: dict[str, dict[str, str]] = {
    "timesfm_mini": {
        "tokenizer.*": "io.input",
        "position": "io.input",
        "head.*": "io.output",
        "layers.*.attn.*": "body.attn",
        "layers.*.mlp.*": "body.ffn",
        "*norm.*": "body.other",
    },
    "pangu_mini": {
        "embed.*": "io.input",
        "time.*": "io.input",
        "maps": "io.input",
        "recover.*": "io.output",
        "layer*.attention.*": "body.attn",
        "layer*.mlp.*": "body.ffn",
        "*norm*": "body.other",
        "down.*": "body.other",
        "up.*": "body.other",
        "mix.*": "body.other",
    },
    "aurora_mini": {
        "embed.*": "io.input",
        "variable": "io.input",
        "place": "io.input",
        "time.*": "io.input",
        "lead_embed.*": "io.input",
        "heads.*": "io.output",
        "latents": "body.attn",
        "query": "body.attn",
        "*attention.*": "body.attn",
        "encoder.*": "body.attn",
        "decoder.*": "body.attn",
        "*mlp.*": "body.ffn",
        "lead_mlp.*": "body.other",
        "*norm*": "body.other",
    },
}
"""The paper's rules in the names of the zoo; the last pattern that matches counts."""


@cache
def of_zoo(model: str) -> dict[str, Role]:
    return {w.label: w.role for w in find_weights(load_model(ZOO / model / "model.onnx"))[1].weights}


def expected(label: str, rules: Mapping[str, str]) -> str:
    return [role for pattern, role in rules.items() if fnmatch.fnmatchcase(label, pattern)][-1]


@pytest.mark.parametrize("model", sorted(A8))
def test_the_graph_of_a_zoo_model_gives_the_buckets_of_its_names(model: str) -> None:
    found = of_zoo(model)
    assert {label: role.value for label, role in found.items()} == {
        label: expected(label, A8[model]) for label in found
    }


SMALL = dataclasses.replace(TINY, depths=(2, 1, 1, 1), lat=21, lon=24)


@pytest.mark.parametrize(
    "shape",
    [
        SMALL,
        dataclasses.replace(SMALL, bias="table"),
        dataclasses.replace(SMALL, norms="decomposed"),
    ],
    ids=["expanded", "table", "decomposed"],
)
def test_pangu_shaped_models_have_their_io_at_both_ends(shape: PanguShape) -> None:
    weights = find_weights(Model(shaped.build(shape, 0, opset=17), Path()))[1].weights
    by_role = {role: [w.label for w in weights if w.role is role] for role in Role}
    assert sum("conv" in label for label in by_role[Role.INPUT]) == 4
    assert sum(label.endswith(".input") for label in by_role[Role.INPUT]) == 2  # maps and heights
    assert sum("out" in label for label in by_role[Role.OUTPUT]) == 4
    blocks = sum(shape.depths)
    assert len(by_role[Role.ATTENTION]) == 5 * blocks
    assert len(by_role[Role.FEED_FORWARD]) == 4 * blocks


def test_the_layers_of_a_network_without_attention_are_sorted_by_place() -> None:
    found = {w.label: w.role.value for w in find_weights(load_model(_lorenz()))[1].weights}
    assert set(found.values()) >= {"io.input", "io.output"}


def _lorenz() -> Path:
    return ZOO.parent / "tqs_models" / "lorenz96" / "model.onnx"


def dense(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def roles_of(body: str, **arrays: np.ndarray) -> dict[str, str]:
    signature = "(float[N,T,8] x) => (float[N,T,8] z)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\nagraph {signature} {{ {body} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return {w.name: w.role.value for w in survey(Model(proto, Path("/nowhere"))).weights}


def test_a_plain_chain_of_products_has_its_ends_and_a_body() -> None:
    body = "a = MatMul(x, i)  b = Relu(a)  c = MatMul(b, m)  d = Relu(c)  e = MatMul(d, o)  z = Add(e, c0)"
    found = roles_of(body, i=dense(8, 8), m=dense(8, 8, seed=1), o=dense(8, 8, seed=2), c0=dense(8))
    assert found == {"i": "io.input", "m": "body.ffn", "o": "io.output", "c0": "io.output"}


ATTENDS = """
    e = MatMul(x, i)
    q = MatMul(e, wq)  k = MatMul(e, wk)  v = MatMul(e, wv)
    qs = Mul(q, qscale)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s0 = MatMul(qs, kt)  s = Softmax(s0)  y = MatMul(s, v)
    p = MatMul(y, wo)  pb = Add(p, bo)
"""
MATRICES = {n: dense(8, 8, seed=k) for k, n in enumerate(("i", "wq", "wk", "wv", "wo", "f1", "f2", "o"))}


def test_parallel_branches_are_told_apart() -> None:
    body = (
        ATTENDS
        + "f = MatMul(e, f1)  g = Relu(f)  h = MatMul(g, f2)  r = Add(e, pb)  t = Add(r, h)  z = MatMul(t, o)"
    )
    found = roles_of(body, **MATRICES, qscale=dense(8), bo=dense(8, seed=9))
    assert found == {
        "i": "io.input",
        **dict.fromkeys(("wq", "wk", "wv", "wo", "qscale", "bo"), "body.attn"),
        "o": "io.output",
        **dict.fromkeys(("f1", "f2"), "body.ffn"),
    }


def test_a_residual_from_the_raw_input_makes_no_branch_of_the_whole_network() -> None:
    body = (
        ATTENDS + "r = Add(e, pb)  f = MatMul(r, f1)  g = Relu(f)  h = MatMul(g, f2)  t = Add(r, h)"
        "  u = MatMul(t, o)  z = Add(x, u)"
    )
    found = roles_of(body, **MATRICES, qscale=dense(8), bo=dense(8, seed=9))
    assert (found["i"], found["f1"], found["f2"], found["o"]) == (
        "io.input", "body.ffn", "body.ffn", "io.output",
    )  # fmt: skip


def test_shapes_computed_from_the_stream_do_not_make_it_attention() -> None:
    """TorchScript reshapes keys by the Shape of what lies before them."""
    shaped = ATTENDS.replace(
        "k = MatMul(e, wk)", "sh = Shape(m0)  k0 = MatMul(e, wk)  k = Reshape(k0, sh)"
    ).replace("e = MatMul(x, i)", "e0 = MatMul(x, i)  g0 = Relu(e0)  m0 = MatMul(g0, f1)  e = Add(e0, m0)")
    found = roles_of(
        shaped + "r = Add(e, pb)  z = MatMul(r, o)", **MATRICES, qscale=dense(8), bo=dense(8, seed=9)
    )
    assert found["f1"] == "io.input"
    assert found["wk"] == "body.attn"


def test_a_softmax_that_weighs_nothing_is_no_attention() -> None:
    found = roles_of(
        "a = MatMul(x, i)  s = Softmax(a)  z = MatMul(s, o)", i=dense(8, 8), o=dense(8, 8, seed=1)
    )
    assert found == {"i": "io.input", "o": "io.output"}


def test_a_fused_attention_operator_is_attention() -> None:
    body = (
        "e = MatMul(x, i)  y = com.microsoft.MultiHeadAttention <num_heads = 2> (e, e, e)  z = MatMul(y, o)"
    )
    assert roles_of(body, i=dense(8, 8), o=dense(8, 8, seed=1)) == {"i": "body.attn", "o": "body.attn"}


def zoo_survey() -> Survey:
    return find_weights(load_model(ZOO / "timesfm_mini" / "model.onnx"))[1]


def test_the_last_pattern_that_matches_counts() -> None:
    changed = with_roles(zoo_survey(), [("layers.*", Role.OTHER), ("layers.0.*", Role.INPUT)])
    found = {w.label: w.role for w in changed.weights}
    assert found["layers.0.mlp.up.weight"] is Role.INPUT
    assert found["layers.1.mlp.up.weight"] is Role.OTHER
    assert found["head.skip.weight"] is Role.OUTPUT


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"'tokeniser\.\*' matches no weight"):
        with_roles(zoo_survey(), [("tokeniser.*", Role.INPUT)])


def test_inspect_shows_the_role_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(ZOO / "timesfm_mini" / "model.onnx")
    assert main(["inspect", model, "--json", "--role", "norm.*=io.output"]) == 0
    found = {w["label"]: w["role"] for w in json.loads(capsys.readouterr().out)["weights"]}
    assert (found["norm.scale"], found["tokenizer.skip.bias"]) == ("io.output", "io.input")


@pytest.mark.parametrize("text", ["norm.*", "=io.output", "norm.*=output"])
def test_what_is_no_role_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(ZOO / "timesfm_mini" / "model.onnx"), "--role", text]) == 2
    assert "is not a role" in capsys.readouterr().err


def test_scores_carry_the_role(tmp_path: Path) -> None:
    folder = ZOO.parent / "tqs_models" / "lorenz96"
    arguments = ["score", str(folder / "model.onnx"), "--rollout", str(folder / "rollout.toml")]
    arguments += ["--contexts", str(folder / "contexts.npz"), "--max-contexts", "1", "--steps", "1"]
    arguments += [
        "--probe",
        "quant",
        "--response-bits",
        "4",
        "--out",
        str(tmp_path / "run"),
        "--threads",
        "1",
    ]
    assert main([*arguments, "--role", "*=body.other"]) == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {w["role"] for w in scores["weights"]} == {"body.other"}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "scores.csv").read_text())))
    assert {row["role"] for row in rows} == {"body.other"}
