"""Blocks that compute with 16-bit floats: casts at their borders only, one type a weight, and what verify says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests import kinds
from tests.models import NOWHERE, TOKENS, block, loop, run
from tests.rollouts import forecaster, model, values, write_case
from tqs_onnx.cli.main import main
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_passes.errors import InputError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model
from tqs_passes.graph_pass import PassResult
from tqs_passes.survey.survey import find_weights
from tqs_passes.transforms.half_precision.half import HalfCompute

Half = Literal["float16", "bfloat16"]


def halved(proto: onnx.ModelProto, dtype: Half = "float16", blocks: str | None = None) -> PassResult:
    lifted, survey = find_weights(Model(proto, NOWHERE))
    before = lifted.proto.SerializeToString(deterministic=True)
    result = HalfCompute(dtype, blocks, {w.name: w.label for w in survey.weights}).apply(lifted)
    assert lifted.proto.SerializeToString(deterministic=True) == before
    assert checker_complaint(result.model.proto) is None
    return result


def chains(proto: onnx.ModelProto) -> list[str]:
    """Return the outputs of Casts that read another Cast's."""
    cast = {n.output[0] for n in proto.graph.node if n.op_type == "Cast"}
    return [n.output[0] for n in proto.graph.node if n.op_type == "Cast" and n.input[0] in cast]


def ops(result: PassResult) -> list[str]:
    return [node.op_type for node in result.model.proto.graph.node]


def stored_types(result: PassResult) -> Mapping[str, int]:
    return {t.name: t.data_type for t in result.model.proto.graph.initializer}


CHAIN = """(float[b, 8] x) => (float[b, 8] y) {
  [one] h = MatMul(x, A)  [two] t = Tanh(h)  [three] y = MatMul(t, B) }"""
WEIGHTS = {"A": values(8, 8, seed=1), "B": values(8, 8, seed=2)}


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)]
)
def test_a_whole_chain_is_cast_once_on_each_side(dtype: Half, kind: int) -> None:
    result = halved(model(CHAIN, WEIGHTS), dtype)
    assert ops(result) == ["Cast", "MatMul", "Tanh", "MatMul", "Cast"]
    assert stored_types(result) == {"A": kind, "B": kind}
    assert result.changed == ("A", "B", "h", "t")
    assert not result.skipped


def test_a_pattern_chooses_one_block_and_the_border_is_there() -> None:
    result = halved(model(CHAIN, WEIGHTS), blocks="^A$")
    assert ops(result) == ["Cast", "MatMul", "Cast", "Tanh", "MatMul"]
    assert stored_types(result) == {"A": TensorProto.FLOAT16, "B": TensorProto.FLOAT}


def test_what_lies_between_two_matches_of_one_block_belongs_to_it() -> None:
    proto = model(
        CHAIN.replace("A)", "w_A)").replace("B)", "w_B)"), {f"w_{n}": w for n, w in WEIGHTS.items()}
    )
    assert ops(halved(proto, blocks="w_")) == ["Cast", "MatMul", "Tanh", "MatMul", "Cast"]
    apart = ops(halved(proto, blocks="w_."))  # two different matches: two blocks, Tanh between them
    assert apart == ["Cast", "MatMul", "Cast", "Tanh", "Cast", "MatMul", "Cast"]


def test_a_pattern_finds_nodes_by_their_names() -> None:
    assert ops(halved(model(CHAIN, WEIGHTS), blocks="three")) == ["MatMul", "Tanh", "Cast", "MatMul", "Cast"]


def test_a_block_without_a_product_gains_nothing() -> None:
    with pytest.raises(InputError, match="no block can compute in float16"):
        halved(model("(float[b, 8] x) => (float[b, 8] y) { y = Add(x, A) }", {"A": values(8)}))


def test_a_weight_that_is_read_outside_keeps_its_readers_in_float32() -> None:
    graph = """(float[b, 8] x) => (float[b, 8] y, float[b, 8] z) {
      y = MatMul(x, A)  s = MatMul(x, B)  c = CumSum(B, zero)  z = MatMul(s, c) }"""
    proto = model(graph, WEIGHTS | {"zero": np.array(0, np.int64)})
    result = halved(proto)
    assert stored_types(result) == {
        "A": TensorProto.FLOAT16,
        "B": TensorProto.FLOAT,
        "zero": TensorProto.INT64,
    }
    assert "weight 'B' is read outside the block as well" in {s.why for s in result.skipped}


def test_a_weight_read_in_a_body_keeps_its_type() -> None:
    with pytest.raises(InputError, match="no block can compute"):
        halved(loop().proto)


def test_a_cast_of_the_models_own_is_the_border() -> None:
    graph = """(float16[b, 8] x) => (float16[b, 8] y, float[b, 8] z) {
      w = Cast<to = 1>(x)  h = MatMul(w, A)  t = Tanh(h)  y = Cast<to = 10>(t)  z = MatMul(t, B) }"""
    result = halved(model(graph, WEIGHTS))
    assert not chains(result.model.proto)
    assert ops(result) == ["MatMul", "Tanh", "Cast", "MatMul", "Cast"]  # the Cast of x has no reader left


def test_a_cast_of_an_input_that_others_read_is_left_alone() -> None:
    graph = """(float[b, 8] x) => (float[b, 8] y, int64[b, 8] n) { n = Cast<to = 7>(x)  y = MatMul(x, A) }"""
    result = halved(model(graph, {"A": WEIGHTS["A"]}))
    assert next(n for n in result.model.proto.graph.node if n.output[0] == "n").input[0] == "x"


@pytest.mark.parametrize(("number", "stays"), [(0.5, False), (1e6, True), (1e-12, True), (0.0, False)])
def test_a_constant_out_of_range_keeps_its_reader_in_float32(number: float, stays: bool) -> None:
    graph = "(float[b, 8] x) => (float[b, 8] y) { h = MatMul(x, A)  y = Add(h, c) }"
    result = halved(model(graph, {"A": WEIGHTS["A"], "c": np.array(number, np.float32)}))
    assert [s.why for s in result.skipped] == (
        ["'c' holds values outside the range of float16"] if stays else []
    )
    assert ops(result)[-1] == ("Add" if stays else "Cast")


def test_bfloat16_has_the_range_of_float32() -> None:
    graph = "(float[b, 8] x) => (float[b, 8] y) { h = MatMul(x, A)  y = Add(h, c) }"
    assert not halved(model(graph, {"A": WEIGHTS["A"], "c": np.array(1e30, np.float32)}), "bfloat16").skipped


def test_below_its_opset_bfloat16_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="MatMul does not take bfloat16 at opset 11"):
        halved(model(CHAIN, WEIGHTS, opset=11), "bfloat16")


def test_below_the_opset_of_cast_float16_is_refused_with_the_reason() -> None:
    proto = model(CHAIN, WEIGHTS)
    proto.opset_import[0].version = 5
    with pytest.raises(InputError, match="opset 5 has no Cast to float16"):
        halved(proto)


def test_a_second_time_there_is_nothing_left_to_do() -> None:
    once = halved(model(CHAIN, WEIGHTS)).model
    with pytest.raises(InputError, match="no block can compute"):
        HalfCompute("float16", None, {"A": "A", "B": "B"}).apply(once)


@pytest.mark.parametrize(
    ("proto", "feeds", "tolerance"),
    [
        # 2^-11 relative a value, sums of ≤ 48 of them, values of order 1: 5e-4, 1.5e-3 and 2e-3 measured.
        (forecaster(), {"x": values(2, 16)}, 3e-3),
        (block().proto, TOKENS, 1e-2),
        (kinds.every_kind(), {n: a[:2] for n, a in kinds.contexts().arrays.items()}, 1e-2),
    ],
    ids=["forecaster", "block", "every kind"],
)
def test_float16_blocks_load_and_compute_nearly_the_same(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float
) -> None:
    ours, theirs = run(halved(proto).model, feeds), run(proto, feeds)
    assert all(ours[n].dtype == theirs[n].dtype for n in theirs)
    assert 0 < max(float(np.abs(ours[n] - theirs[n]).max()) for n in theirs) < tolerance


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_cast_reads_a_cast_in_a_graph_of_every_kind(dtype: Half) -> None:
    assert chains(halved(kinds.every_kind(), dtype).model.proto) == chains(kinds.every_kind())


def quantized(folder: Path, *more: str) -> tuple[int, Path]:
    case = write_case(folder, forecaster(32, 64), steps=3)
    arguments = [*case.arguments("--out", str(folder / "run")), "--repair", "0", "--threads", "1"]
    return main(["quantize", str(case.model), *arguments, *more]), folder / "run/m.tqs.onnx"


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("compression", ["1.5", "4"])
def test_a_plan_with_float16_blocks_is_kept_to_the_byte_and_verified(
    tmp_path: Path, profile: str, compression: str
) -> None:
    code, file = quantized(tmp_path, "--compression", compression, "--compute", "fp16", "--profile", profile)
    assert code == 0
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    verified = json.loads((tmp_path / "run/manifest.json").read_text())["verification"]
    assert plan["compute"] == {"dtype": "float16", "blocks": None}
    assert {a["dtype"] for a in plan["assignments"]} == {"float16"}
    assert file.stat().st_size == plan["n_bytes"]
    assert verified["runtime_gap"] < 5e-3  # three steps of values of order 1 at 2^-11 each
    assert not chains(onnx.load(file))


def test_a_weight_kept_at_the_blocks_type_is_stored_without_a_cast(tmp_path: Path) -> None:
    _, file = quantized(tmp_path, "--compression", "1.5", "--compute", "fp16", "--tiers", "FP32")
    proto = onnx.load(file)
    assert {t.name: t.data_type for t in proto.graph.initializer if len(t.dims) == 2} == {
        "W1": TensorProto.FLOAT16,
        "W2": TensorProto.FLOAT16,
    }
    source = onnx.load(tmp_path / "m.onnx")
    expected = next(numpy_helper.to_array(t) for t in source.graph.initializer if t.name == "W1")
    held = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "W1")
    assert held.tobytes() == expected.astype(np.float16).tobytes()


def test_data_aware_rounding_goes_with_float16_blocks(tmp_path: Path) -> None:
    code, _ = quantized(tmp_path, "--compression", "4", "--compute", "fp16", "--rounding", "gptq")
    assert code == 0
    assert {a["rounding"] for a in json.loads((tmp_path / "run/plan.json").read_text())["assignments"]} & {
        "gptq"
    }


REFUSED = [
    (["--compute", "bf16"], "ort-cpu does not compute with bfloat16"),
    (["--compute", "bf16", "--target", "portable"], "portable does not compute with bfloat16"),
    (["--compute", "bf16", "--target", "ort-cuda"], "cannot be rolled out on the CPU"),
    (["--compute-blocks", "a"], "--compute: is required by other options"),
    (["--compute", "fp16", "--compute-blocks", "["], "is not a regular expression"),
    (["--compute", "fp16", "--compute-blocks", "nowhere"], "matches no weight and no node"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_what_cannot_be_served_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert quantized(tmp_path, "--compression", "2", *more)[0] == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_bfloat16_file_passes_the_checker_and_keeps_its_bytes(tmp_path: Path) -> None:
    quantized(tmp_path, "--compression", "1.5")
    plan, file = tmp_path / "p.json", tmp_path / "b.onnx"
    arguments = ["--scores", str(tmp_path / "run/scores.json"), "--compression", "3", "--out", str(plan)]
    more = ["--target", "ort-cuda", "--compute", "bf16"]
    assert main(["allocate", str(tmp_path / "m.onnx"), *arguments, *more]) == 0
    assert main(["emit", str(tmp_path / "m.onnx"), "--plan", str(plan), "--out", str(file)]) == 0
    proto = onnx.load(file)
    assert checker_complaint(proto) is None
    assert not chains(proto)
    assert file.stat().st_size == json.loads(plan.read_text())["n_bytes"]


def test_a_plan_whose_types_are_not_the_blocks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized(tmp_path, "--compression", "2", "--compute", "fp16")
    plan = tmp_path / "run/plan.json"
    document = json.loads(plan.read_text())
    document["compute"] = None
    plan.write_text(json.dumps(document))
    capsys.readouterr()
    assert (
        main(["emit", str(tmp_path / "m.onnx"), "--plan", str(plan), "--out", str(tmp_path / "o.onnx")]) == 2
    )
    assert "is not float16 in the model" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


def test_a_wrong_cast_would_be_caught_by_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = quantized(tmp_path, "--compression", "2", "--compute", "fp16")
    proto = onnx.load(file)
    border = next(n for n in proto.graph.node if n.op_type == "Cast" and n.input[0] == "x")
    border.op_type, name = "Neg", border.output[0]
    del border.attribute[:]
    border.output[0] = "negated"
    at = list(proto.graph.node).index(border)
    proto.graph.node.insert(
        at + 1, onnx.helper.make_node("Cast", ["negated"], [name], to=TensorProto.FLOAT16)
    )
    onnx.save(proto, file)
    open_session(file, options=SessionOptions(threads=1))
    arguments = ["--source", str(tmp_path / "m.onnx"), "--plan", str(tmp_path / "run/plan.json"), "--force"]
    arguments += ["--scores", str(tmp_path / "run/scores.json"), "--rollout", str(tmp_path / "rollout.toml")]
    arguments += ["--contexts", str(tmp_path / "contexts.npz"), "--eval-contexts", str(tmp_path / "eval.npz")]
    assert main(["verify", str(file), *arguments]) == 3
    assert "computes other results than the FP32 graph with this file's weights" in capsys.readouterr().err


TURNED = """(float[3, 3, 8] x) => (float[3, 3, 8] y) {
  [one] h = MatMul(x, A)  [turn] t = Transpose <perm = [%s]> (h)  [two] y = MatMul(t, B) }"""


@pytest.mark.parametrize(("perm", "crashes"), [("1, 0, 2", True), ("0, 1, 2", False)])
def test_a_transpose_that_crashes_the_runtime_stays_in_float32(perm: str, crashes: bool) -> None:
    result = halved(model(TURNED % perm, WEIGHTS))
    assert [skip.what for skip in result.skipped] == ["turn"] * crashes
    assert ops(result).count("Cast") == 2 + 2 * crashes
    x = {"x": values(3, 3, 8, seed=3)}
    # Two products of eight values rounded to 11 bits
    np.testing.assert_allclose(
        run(result.model, x)["y"], run(model(TURNED % perm, WEIGHTS), x)["y"], rtol=1e-2, atol=1e-2
    )


def test_a_transpose_that_crashes_in_float16_may_be_bfloat16() -> None:
    assert not halved(model(TURNED % "1, 0, 2", WEIGHTS), "bfloat16").skipped
