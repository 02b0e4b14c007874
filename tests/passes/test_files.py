"""`model_io`: files that are no model are refused with one line; external data stay external; writing is atomic."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.models import block, draws, info, model_of, run, tensor, two_branches
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import atomic_file, write_text
from tqs_passes.files.model import EXTERNAL_THRESHOLD_BYTES, Model, file_facts, load_model, serialize
from tqs_passes.files.save import save_model
from tqs_passes.files.tensors import iter_tensors, tensor_array, tensor_n_bytes

SUB_BYTE = {
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
    TensorProto.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}


def stored_model(folder: Path, *tensors: onnx.TensorProto) -> Model:
    """A model that stores the tensors and reads none of them."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return model_of(nodes, [info("x", [1])], [info("y", [1])], tensors, 21, folder)


def external(folder: Path, change: Callable[[dict[str, str]], None] | None = None, n: int = 600) -> Path:
    """`m.onnx` whose weight `w` [n] lies in `m.data`; `change` edits its location, offset and length."""
    values = draws(0, n)
    (folder / "m.data").write_bytes(values.tobytes())
    w = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[n])
    w.data_location = TensorProto.EXTERNAL
    fields = {"location": "m.data", "offset": "0", "length": str(values.nbytes)}
    if change:
        change(fields)
    for key, value in fields.items():
        w.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(serialize(stored_model(folder, w).proto))
    return folder / "m.onnx"


def arrays(model: Model) -> dict[str, np.ndarray]:
    return {t.name: np.array(tensor_array(t, model.folder)) for t in iter_tensors(model.proto)}


# ---- files that are no model


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "contains no graph"),
        (b"just some text\n", "is not an ONNX file"),
        (b"{}", "is not an ONNX file"),
        (bytes(range(256)) * 40, "is not an ONNX file"),
        (b"\x00" * 1000, "is not an ONNX file"),
        (b"PK\x03\x04" + b"\x00" * 100, "is not an ONNX file"),
    ],
)
def test_files_that_are_not_onnx_are_refused(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=said) as caught:
        load_model(path)
    assert str(path) in caught.value.where


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200))
def test_random_bytes_load_or_are_refused_and_nothing_else(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(raw)
    with contextlib.suppress(InputError):  # any other error fails the test
        assert load_model(path).proto.HasField("graph")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    raw = serialize(block().proto)
    (tmp_path / "m.onnx").write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(InputError, match="truncated"):
        load_model(tmp_path / "m.onnx")


def test_a_missing_file_a_folder_and_an_impossible_name_are_refused(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none.onnx", "no such file"),
        (tmp_path, "is not a file"),
        (tmp_path / ("n" * 5000), "cannot be resolved"),
        (tmp_path / "a\0b", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            load_model(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        load_model(path)


@pytest.mark.parametrize("name", ["m.json", "m.textproto", "m.onnxtxt", "m"])
def test_the_file_is_read_as_onnx_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(serialize(block().proto))
    assert load_model(tmp_path / name).proto == block().proto
    (tmp_path / name).write_text("{ not a model }")
    with pytest.raises(InputError, match="is not an ONNX file"):
        load_model(tmp_path / name)


def test_a_model_without_an_opset_is_refused(tmp_path: Path) -> None:
    proto = block().proto
    del proto.opset_import[:]
    (tmp_path / "m.onnx").write_bytes(serialize(proto))
    with pytest.raises(InputError, match="imports no opset"):
        load_model(tmp_path / "m.onnx")


# ---- external data


def test_external_data_are_mapped_and_not_copied(tmp_path: Path) -> None:
    model = load_model(external(tmp_path))
    values = tensor_array(model.proto.graph.initializer[0], model.folder)
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable
    np.testing.assert_array_equal(values, draws(0, 600))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"location": "gone.data"}, "is missing"),
        ({"location": "."}, "is missing"),
        ({"location": ""}, "has no location"),
        ({"location": "../m.data"}, "is outside the model's folder"),
        ({"location": "a/../../m.data"}, "is outside the model's folder"),
        ({"location": "/etc/hostname"}, "is outside the model's folder"),
        ({"location": "link.data"}, "is outside the model's folder"),
        ({"location": "m\0.data"}, "null byte"),
        ({"location": "n" * 5000}, "cannot be resolved"),
        ({"location": "round"}, "cannot be resolved|is missing"),
        ({"offset": "4"}, "too short"),
        ({"offset": "-4"}, "too short"),
        ({"offset": "99999999999999999999"}, "too short"),
        ({"offset": "four"}, "not a number"),
        ({"length": "4.5"}, "not a number"),
        ({"length": "2396"}, "2396 bytes instead of 2400"),
    ],
)
def test_bad_external_data_are_refused(fields: dict[str, str], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "m.data").write_bytes(bytes(2400))
    (folder / "link.data").symlink_to(tmp_path / "m.data")
    (folder / "round").symlink_to(folder / "round")
    with pytest.raises(InputError, match=said):
        load_model(external(folder, lambda f: f.update(fields)))


def test_external_data_that_are_too_short_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "m.data").write_bytes(bytes(2399))
    with pytest.raises(InputError, match="truncated"):
        load_model(path)


def test_external_data_in_bodies_are_checked_too(tmp_path: Path) -> None:
    model = two_branches()
    body = model.proto.graph.node[0].attribute[0].g
    body.initializer.append(load_model(external(tmp_path)).proto.graph.initializer[0])
    (tmp_path / "b.onnx").write_bytes(serialize(model.proto))
    (tmp_path / "m.data").unlink()
    with pytest.raises(InputError, match="is missing"):
        load_model(tmp_path / "b.onnx")


def test_an_offset_and_a_scalar_are_read_right(tmp_path: Path) -> None:
    path = external(tmp_path, lambda f: f.update(offset="400", length="2000"), n=600)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].dims[:] = [500]
    scalar = proto.graph.initializer.add(name="s", data_type=TensorProto.FLOAT)
    scalar.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "m.data"), ("offset", "8")):
        scalar.external_data.add(key=key, value=value)
    path.write_bytes(serialize(proto))
    got = arrays(load_model(path))
    np.testing.assert_array_equal(got["w"], draws(0, 600)[100:])
    assert got["s"].shape == ()
    assert got["s"] == draws(0, 600)[2]


# ---- facts


def test_facts_count_every_file_once(tmp_path: Path) -> None:
    path = external(tmp_path)
    facts = file_facts(path)
    assert facts.n_bytes == path.stat().st_size + 2400
    assert facts.sha256 == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("m.data", "m.onnx")
    }


def test_data_files_of_one_name_in_two_folders_are_two_files(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.data").write_bytes(bytes(2400))
        twin = proto.graph.initializer.add()
        twin.CopyFrom(proto.graph.initializer[0])
        twin.name = folder
        twin.external_data[0].value = f"{folder}/m.data"
    path.write_bytes(serialize(proto))
    facts = file_facts(path)
    assert sorted(facts.sha256) == ["a/m.data", "b/m.data", "m.data", "m.onnx"]
    assert facts.n_bytes == path.stat().st_size + 3 * 2400


# ---- bytes of a tensor


@pytest.mark.parametrize("kind", SUB_BYTE)
@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_sub_byte_types_are_packed(kind: int, n: int, tmp_path: Path) -> None:
    values = np.arange(n).astype(SUB_BYTE[kind])
    packed = numpy_helper.from_array(values, "t")
    assert packed.data_type == kind
    assert tensor_n_bytes(packed) == (n + 1) // 2 == len(packed.raw_data)
    (tmp_path / "t.data").write_bytes(packed.raw_data)
    packed.ClearField("raw_data")
    packed.data_location = TensorProto.EXTERNAL
    packed.external_data.add(key="location", value="t.data")
    np.testing.assert_array_equal(tensor_array(packed, tmp_path), values)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (np.float32, 4),
        (np.float16, 2),
        (ml_dtypes.bfloat16, 2),
        (ml_dtypes.float8_e4m3fn, 1),
        (np.bool_, 1),
        (np.int64, 8),
    ],
)
def test_bytes_of_a_tensor_are_those_of_its_values(dtype: type[np.generic], size: int) -> None:
    assert tensor_n_bytes(numpy_helper.from_array(np.ones((3, 5), dtype))) == 15 * size


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (onnx.TensorProto(name="t", data_type=1, dims=[-1]), "negative dimension"),
        (onnx.TensorProto(name="t", data_type=0, dims=[1]), "unknown data type"),
        (onnx.TensorProto(name="t", data_type=999, dims=[1]), "unknown data type"),
        (onnx.TensorProto(name="t", data_type=TensorProto.STRING, dims=[1]), "strings"),
    ],
)
def test_tensors_without_a_size_are_refused(made: onnx.TensorProto, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tensor_n_bytes(made)


def test_data_that_do_not_fit_the_shape_are_refused(tmp_path: Path) -> None:
    short = onnx.TensorProto(name="t", data_type=1, dims=[3], raw_data=b"\0" * 8)
    with pytest.raises(InputError, match="does not fit"):
        tensor_array(short, tmp_path)


# ---- writing


KINDS = [
    tensor("f32", draws(0, 40, 9)),
    tensor("f16", draws(1, 700, dtype=np.float16)),
    tensor("f64", draws(2, 200, dtype=np.float64)),
    numpy_helper.from_array(draws(3, 600).astype(ml_dtypes.bfloat16), "bf16"),
    numpy_helper.from_array(np.arange(2100).astype(ml_dtypes.int4), "i4"),
    tensor("i64", np.arange(300)),
    tensor("flags", np.arange(2000) % 3 == 0),
    tensor("small", np.arange(4, dtype=np.float32)),
    tensor("scalar", np.array(2.5, np.float32)),
    tensor("empty", np.zeros((0, 3), np.float32)),
    helper.make_tensor("fields16", TensorProto.FLOAT16, [600], draws(5, 600, dtype=np.float16)),
    helper.make_tensor("fields32", TensorProto.FLOAT, [300], draws(6, 300)),
    helper.make_tensor("fields64", TensorProto.INT64, [300], np.arange(300)),
]


@pytest.mark.parametrize("then_external", [True, False])
@pytest.mark.parametrize("external_first", [True, False])
def test_every_type_survives_writing_and_reading(
    external_first: bool, then_external: bool, tmp_path: Path
) -> None:
    """Written with or without external data, read, written again elsewhere, read again."""
    model = stored_model(tmp_path, *KINDS)
    expected = arrays(model)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    save_model(model, tmp_path / "one" / "m.onnx", external=external_first)
    once = load_model(tmp_path / "one" / "m.onnx")
    save_model(once, tmp_path / "two" / "n.onnx", external=then_external)
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "one" / name).unlink(missing_ok=True)
    got = arrays(load_model(tmp_path / "two" / "n.onnx"))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name].dtype == values.dtype, name
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_only_large_tensors_are_written_externally_and_aligned(tmp_path: Path) -> None:
    save_model(stored_model(tmp_path, *KINDS), tmp_path / "m.onnx", external=True)
    for stored in load_model(tmp_path / "m.onnx").proto.graph.initializer:
        outside = stored.data_location == TensorProto.EXTERNAL
        assert outside == (tensor_n_bytes(stored) >= EXTERNAL_THRESHOLD_BYTES), stored.name
        fields = {e.key: e.value for e in stored.external_data}
        assert int(fields.get("offset", "0")) % 64 == 0
        assert fields.get("location", "m.onnx.data") == "m.onnx.data"


def test_a_model_with_external_data_runs(tmp_path: Path) -> None:
    from tqs_onnx.rollout.session import open_session

    model = block(width=48)
    save_model(model, tmp_path / "m.onnx", external=True)
    tokens = {"tokens": np.array([[0, 3, 6, 1, 2], [5, 5, 4, 0, 1]])}
    session = open_session(tmp_path / "m.onnx")
    got = session.run({"tokens": session.value(tokens["tokens"])})["y"].numpy()
    np.testing.assert_array_equal(got, run(model, tokens)["y"])


def test_a_file_can_be_written_over_itself(tmp_path: Path) -> None:
    path = external(tmp_path)
    save_model(load_model(path), path)
    np.testing.assert_array_equal(arrays(load_model(path))["w"], draws(0, 600))


def test_writing_does_not_change_the_model(tmp_path: Path) -> None:
    model = load_model(external(tmp_path))
    before = serialize(model.proto)
    save_model(model, tmp_path / "a.onnx", external=True)
    save_model(model, tmp_path / "b.onnx", external=False)
    assert serialize(model.proto) == before


@pytest.mark.parametrize("as_external", [True, False])
def test_a_failing_write_leaves_nothing_behind(
    as_external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_text("the old file")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    def full_stream(proto: onnx.ModelProto, stream: BinaryIO, _: object) -> None:
        stream.write(proto.SerializeToString()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr("tqs_passes.files.save.write_model", full_stream)
    with pytest.raises(InputError, match=r"m\.onnx(\.data)?: the disk is full\. Free disk space and run"):
        save_model(block(width=48), tmp_path / "m.onnx", external=as_external)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "the old file"


def test_no_model_appears_when_its_data_cannot(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save_model(block(width=48), tmp_path / "m.onnx", external=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx.data"]


def test_an_error_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "a") as tmp:
            tmp.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write to this folder"):
        save_model(block(), tmp_path / "none" / "m.onnx")


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save_model(block(), tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_text_is_written_whole_under_its_name(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "γ\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == "γ\n".encode()


def test_serialization_does_not_depend_on_the_process() -> None:
    assert serialize(block().proto) == serialize(onnx.ModelProto.FromString(serialize(block().proto)))
