"""Mutated models and plans: each is refused with a clear error or emitted correctly, and no other file stays."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models import two_branches
from tests.rollouts import forecaster, values
from tqs_onnx.allocation.bare_plan import bare_plan
from tqs_onnx.allocation.request import menus_of, prepared_source, settled_serving, size_of
from tqs_onnx.cli.inspect import command as inspect
from tqs_onnx.cli.main import main
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source, open_source, require_scorable
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.errors import TqsError
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import file_facts, load_model, serialize
from tqs_passes.files.tensors import tensor_array
from tqs_passes.graph.decoding import decoding
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.plan import Compute, Plan, ServingTarget, read_plan
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier

#: Cases run by default and under `slow`, for models and for plans each.
DEFAULT, SLOW = 110, 500
TIERS = (Tier.FP32, Tier.FP16, Tier.INT4, Tier.INT1)
COMPUTED = [{"dtype": "float16", "blocks": b} for b in (None, "(", "W1")] + [{"dtype": "bfloat16"}]
STOCK = Serving(names="keep", graph="keep")
#: What mutated models are emitted for.
SERVINGS = (
    STOCK,
    Serving(names="short", graph="slim"),
    Serving(compute=Compute(dtype="float16")),
    Serving(compute=Compute(dtype="float16", blocks="W1|^a$")),
    Serving(target=ServingTarget.ORT_CUDA, compute=Compute(dtype="bfloat16")),
    Serving(encoding=Encoding.NATIVE, opset=21),
    Serving(target=ServingTarget.TENSORRT),
)
HOSTILE = [
    "", "../../etc/passwd", "a/b\\c", "<script>alert(1)</script>", "x\ny", "x\0y", "n" * 10_000, "W1_quantized",
    "tqs.0.0", "tqs", "\u202egnp", "\U0001f4a5", "%s%n", "{0}", "W1_scale", "W1",
]  # fmt: skip


def base() -> onnx.ModelProto:
    """Return a model with matrices, biases, a mask and weights in both branches of an If."""
    proto = forecaster(24, 32)
    mask = np.where(values(24, 24) < 0, -1e9, 0).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    proto.graph.node.append(helper.make_node("Add", ["mask", "mask"], ["unread"]))
    return proto


def options_of(source: Source, serving: Serving = STOCK) -> tuple[Plan, int]:
    """Return a plan that stores every weight as small as it can, and the bytes it predicts."""
    serving = settled_serving(source, serving)
    ready = prepared_source(source, serving)
    listed = menus_of(source, ready, "fast", TIERS, serving)
    chosen = [min(m.candidates, key=lambda c: c.assignment.n_bytes) for m in listed]
    plan = bare_plan(source, chosen, size_of(source, ready), "fast", serving)
    return plan, plan.n_bytes


_MADE = ("m.onnx", "m.onnx.data", "plan.json", "o.onnx", "o.onnx.names.json")


def left_over(folder: Path) -> list[str]:
    """Return what lies in a folder besides the model, the plan and the emitted file."""
    return [p.name for p in folder.iterdir() if p.name not in _MADE]


def require_clear(error: TqsError, out: Path) -> None:
    """Hold a refusal to one printable line and to leaving no file."""
    assert str(error).isprintable()
    assert len(str(error)) < 2000
    assert not out.exists()


def emitted_or_refused(folder: Path, serving: Serving = STOCK) -> bool:
    """Emit the model in a folder; return False when it is refused, and fail on anything but the two."""
    out = folder / "o.onnx"
    out.unlink(missing_ok=True)
    before = (folder / "m.onnx").read_bytes()
    try:
        source = open_source(folder / "m.onnx")
        require_scorable(source)
        plan, n_bytes = options_of(source, serving)
        emit(source.lifted, plan, out)
    except TqsError as error:
        require_clear(error, out)
        return False
    finally:
        assert not left_over(folder)
        assert (folder / "m.onnx").read_bytes() == before
    assert file_facts(out).n_bytes == n_bytes
    if checker_complaint(load_model(folder / "m.onnx").proto) is None:
        assert checker_complaint(load_model(out).proto) is None
    return True


def require_decoded(folder: Path) -> None:
    """Hold the weights of the emitted file, decoded by the runtime, against the plan's reference."""
    source = open_source(folder / "m.onnx")
    plan, _ = options_of(source)
    stored = {t.name: t for t in source.lifted.proto.graph.initializer}
    planned = [a for a in plan.assignments if a.form is not Form.KEEP]
    if not planned:
        return
    model = serialize(decoding(load_model(folder / "o.onnx"), [a.weight for a in planned]))
    found = open_session(model, options=SessionOptions(threads=1)).run({})
    for a in planned:
        reference = reference_weight(a, tensor_array(stored[a.weight], source.lifted.folder))
        assert found[a.weight].numpy().tobytes() == reference.tobytes()


Mutation = Callable[[random.Random, bytes], bytes]


def flipped(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def header_flipped(rng: random.Random, data: bytes) -> bytes:
    """Flip bytes where the nodes are, not in the weights' values."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(min(500, len(out)))] = rng.randrange(256)
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def repeated(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randint(1, 400)] * 2 + data[start:]


def structural(rng: random.Random, data: bytes) -> bytes:
    """Change one thing that the protobuf allows and ONNX may not."""
    proto = onnx.ModelProto.FromString(data)
    graph = proto.graph
    tensor, node = rng.choice(graph.initializer), rng.choice(graph.node)

    def resized() -> None:
        tensor.dims[:] = [rng.choice([-1, 0, 1, 7, 2**31, 2**62]) for _ in range(rng.randint(0, 4))]

    def retyped() -> None:
        tensor.data_type = rng.choice([0, 2, 3, 8, 9, 14, 16, 17, 21, 22, 25, 99])

    def emptied() -> None:
        tensor.ClearField("raw_data")

    def moved_out() -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        place = rng.choice(["../x", "/etc/passwd", "", "m.onnx", "none", "a\0b", "n" * 5000])
        tensor.external_data.add(key="location", value=place)
        tensor.external_data.add(key="offset", value=rng.choice(["0", "-1", "x", str(2**70), "64"]))

    def rewired() -> None:
        node.input[rng.randrange(len(node.input))] = rng.choice([node.output[0], "", "nowhere", tensor.name])

    def retold() -> None:
        node.op_type = rng.choice(
            ["", "If", "Loop", "Gather", "Reshape", "Nothing", "Constant", "Transpose", "LSTM"]
        )

    def redone() -> None:
        graph.node.append(node)

    def doubled() -> None:
        graph.initializer.append(tensor)

    def removed() -> None:
        graph.initializer.remove(tensor)

    def versioned() -> None:
        proto.opset_import[0].version = rng.choice([-5, 0, 1, 6, 8, 9, 11, 13, 21, 10**9])

    def unversioned() -> None:
        del proto.opset_import[:]

    def not_finite() -> None:
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 1e-42])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def noted() -> None:
        proto.metadata_props.add(key=rng.choice(HOSTILE), value=rng.choice(HOSTILE))

    def defaulted() -> None:
        info = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims))
        graph.input.append(info)

    rng.choice([resized, retyped, emptied, moved_out, rewired, retold, redone, doubled, removed, versioned,
                unversioned, not_finite, noted, defaulted])()  # fmt: skip
    return bytes(proto.SerializeToString())


@functools.cache
def sources() -> tuple[bytes, ...]:
    return base().SerializeToString(), two_branches().proto.SerializeToString()


MUTATIONS: tuple[Mutation, ...] = (flipped, header_flipped, cut, repeated, structural, structural, structural)


def mutate_models(folder: Path, seeds: range) -> int:
    """Mutate one model a seed; return how many were emitted."""
    emitted = 0
    for seed in seeds:
        rng = random.Random(seed)
        data = rng.choice(sources())
        try:
            mutated = rng.choice(MUTATIONS)(rng, data)
        except (ValueError, IndexError):
            continue  # the mutation itself is no protobuf
        (folder / "m.onnx").write_bytes(mutated)
        try:
            emitted += emitted_or_refused(folder, rng.choice(SERVINGS))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    return emitted


def test_the_unmutated_models_are_emitted_and_decode(tmp_path: Path) -> None:
    for data in sources():
        (tmp_path / "m.onnx").write_bytes(data)
        assert emitted_or_refused(tmp_path)
        require_decoded(tmp_path)


def test_mutated_models_are_refused_or_emitted(tmp_path: Path) -> None:
    emitted = mutate_models(tmp_path, range(DEFAULT))
    assert 0 < emitted < DEFAULT  # the mutations are neither all deadly nor all idle


@pytest.mark.slow
def test_many_mutated_models_are_refused_or_emitted(tmp_path: Path) -> None:
    assert mutate_models(tmp_path, range(DEFAULT, DEFAULT + SLOW)) > 0


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: ascii(n[:12]))
def test_hostile_names_survive_or_are_refused(name: str, tmp_path: Path) -> None:
    proto = base()
    for node in proto.graph.node:
        for i, read in enumerate(node.input):
            node.input[i] = name if read == "W2" else read
        node.name = name
    next(t for t in proto.graph.initializer if t.name == "W2").name = name
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    if emitted_or_refused(tmp_path):
        require_decoded(tmp_path)
    assert main(["inspect", str(tmp_path / "m.onnx"), "--json"]) in (0, 2)
    assert inspect.name == "inspect"


def mutated_plan(rng: random.Random, text: str) -> str:
    """Change one value of a plan, drop or add a key, or break its text."""
    if rng.random() < 0.15:
        where = rng.randrange(len(text))
        return text[:where] + rng.choice(["", "}", '"', "\0", "\ud83d", "9" * 400]) + text[where + 1 :]
    document = json.loads(text)
    row = rng.choice(document["assignments"])
    place = rng.choice([document, row, row, row])
    key = rng.choice(list(place))
    kind = rng.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.25:
        place[rng.choice(HOSTILE)] = 1
    elif kind < 0.35:
        document["assignments"].append(row)
    else:
        place[key] = rng.choice(
            [None, -1, 0, 3, 10**30, 1.5, "", "INT3", "INT8", "FP16", "signed", "midrise", "dq", "cm", "keep", "cast",
             "native", "float16", "bfloat16",
             *COMPUTED, "W1", "W2", "tensorrt", [], [24, 32], {}, True, "NaN", 13, 21, "small", *HOSTILE[:6]]
        )  # fmt: skip
    return json.dumps(document)


def mutate_plans(folder: Path, seeds: range) -> int:
    """Mutate one plan a seed; return how many were emitted."""
    (folder / "m.onnx").write_bytes(sources()[0])
    source = open_source(folder / "m.onnx")
    text = options_of(source)[0].to_json()
    out, emitted = folder / "o.onnx", 0
    for seed in seeds:
        out.unlink(missing_ok=True)
        (folder / "plan.json").write_text(
            mutated_plan(random.Random(seed), text), encoding="utf-8", errors="replace"
        )
        try:
            plan = read_plan(folder / "plan.json")
            emit(source.lifted, plan, out)
        except TqsError as error:
            require_clear(error, out)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        else:
            emitted += 1
            assert load_model(out).proto.graph.node
        assert not left_over(folder)
    return emitted


def test_mutated_plans_are_refused_or_emitted(tmp_path: Path) -> None:
    assert 0 < mutate_plans(tmp_path, range(DEFAULT)) < DEFAULT


@pytest.mark.slow
def test_many_mutated_plans_are_refused_or_emitted(tmp_path: Path) -> None:
    assert mutate_plans(tmp_path, range(DEFAULT, DEFAULT + SLOW)) > 0


def test_a_quantised_model_is_left_as_it_is_with_a_reason(tmp_path: Path) -> None:
    proto = forecaster(16, 24)
    codes = np.random.default_rng(0).integers(-8, 7, (16, 16)).astype(np.int8)
    proto.graph.initializer.append(numpy_helper.from_array(codes, "codes"))
    proto.graph.initializer.append(numpy_helper.from_array(values(16) ** 2 + np.float32(0.1), "steps"))
    proto.graph.node.append(helper.make_node("DequantizeLinear", ["codes", "steps"], ["q"], axis=0))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    source = open_source(tmp_path / "m.onnx")
    assert {e.name: "quantised" in e.reason for e in source.survey.excluded} == {"steps": True}
    assert emitted_or_refused(tmp_path)
    kept = {t.name: t for t in load_model(tmp_path / "o.onnx").proto.graph.initializer}
    assert numpy_helper.to_array(kept["codes"]).tobytes() == codes.tobytes()
