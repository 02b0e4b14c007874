"""What exporters of torch do to parameters, one trap a test: seen in exports of TimesFM, Aurora and Pangu-Weather."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.passes.test_survey import dense, ints, model_of, survey_of
from tqs_passes.files import save
from tqs_passes.files.checker import checker_complaint
from tqs_passes.files.model import Model, load_model
from tqs_passes.files.save import save_model
from tqs_passes.files.tensors import tensor_array
from tqs_passes.survey.survey import find_weights

quiet = pytest.mark.filterwarnings("ignore")  # torch's exporters warn about themselves


def test_a_product_of_two_constants_has_two_weights() -> None:
    found = survey_of("p = MatMul(w, v)  z = Add(x, p)", w=dense(3, 5), v=dense(5, 4, seed=1)).by_name()
    assert {n: w.channel_axis for n, w in found.items()} == {"w": 0, "v": 1}


@pytest.mark.parametrize("order", ["b, p", "p, b"])
def test_a_bias_is_a_weight_on_either_side_of_its_add(order: str) -> None:
    found = survey_of(f"p = MatMul(x, w)  z = Add({order})", w=dense(4, 4), b=dense(4, seed=1)).by_name()
    assert set(found) == {"w", "b"}
    assert found["w"].channel_axis == 1


def test_a_table_is_followed_through_gathernd_reshape_transpose_and_unsqueeze() -> None:
    body = """g = GatherND(w, at)  r = Reshape(g, shape)  t = Transpose <perm = [1, 0]> (r)
      u = Unsqueeze(t, axes)  z = Add(x, u)"""
    at = np.arange(6, dtype=np.int64)[:, None]
    found = survey_of(
        body, "(float[N,3,2] x) => (float[N,3,2] z)", w=dense(10), at=at, shape=ints(2, 3), axes=ints(0)
    )
    assert [(r.op_type, r.through) for r in found.by_name()["w"].readers] == [
        ("Add", ("GatherND", "Reshape", "Transpose", "Unsqueeze"))
    ]


def test_latents_are_followed_through_expand_into_an_einsum() -> None:
    body = 'e = Expand(w, shape)  z = Einsum <equation = "nij,jk->nik"> (e, v)'
    found = survey_of(
        body, "(float[N,4] x) => (float[N,4] z)", w=dense(1, 3, 4), v=dense(4, 4), shape=ints(2, 3, 4)
    )
    assert [r.op_type for r in found.by_name()["w"].readers] == ["Einsum"]


def test_one_scale_of_ones_that_eight_norms_share_is_no_weight() -> None:
    lines = [f"h{i + 1} = LayerNormalization <axis = -1> (h{i}, val_1596)" for i in range(8)]
    body = "h0 = Relu(x)  " + "  ".join(lines) + "  z = MatMul(h8, w)"
    found = survey_of(body, w=dense(4, 4), val_1596=np.ones(4, np.float32))
    assert [w.name for w in found.weights] == ["w"]
    assert [e.name for e in found.excluded] == ["val_1596"]


@pytest.mark.parametrize("through", ["", "a = Identity(w)  b = Identity(w)  "])
def test_parameters_merged_into_one_initializer_show_all_their_readers(through: str) -> None:
    one, other = ("a", "b") if through else ("w", "w")
    found = survey_of(f"{through}p = MatMul(x, {one})  q = Relu(p)  z = MatMul(q, {other})", w=dense(4, 4))
    (weight,) = found.weights
    assert [r.op_type for r in weight.readers] == ["MatMul", "MatMul"]
    assert weight.channel_axis == 1


def test_a_weight_of_an_unrolled_loop_is_one_weight_with_a_reader_a_step() -> None:
    body = "  ".join(f"h{i + 1} = MatMul(h{i}, w)" for i in range(4))
    found = survey_of(f"h0 = Relu(x)  {body}  z = Relu(h4)", w=dense(4, 4))
    (weight,) = found.weights
    assert len(weight.readers) == 4


def test_a_model_too_big_for_protobuf_is_written_with_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save, "SINGLE_FILE_LIMIT_BYTES", 4096)
    model = model_of("z = MatMul(x, w)", "(float[N,64] x) => (float[N,64] z)", w=dense(64, 64))
    save_model(Model(model.proto, tmp_path), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= 4 * 64 * 64
    again = load_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(tensor_array(again.proto.graph.initializer[0], again.folder), dense(64, 64))


def network(torch: Any) -> Any:
    """Return a small module with what the traps are about: a 3-D Linear, a norm, a bias table, and a mask."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(8)
            self.up = torch.nn.Linear(8, 16)
            self.down = torch.nn.Linear(16, 8)
            self.table = torch.nn.Parameter(torch.randn(1, 5, 8))
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():  # zeros and ones would be merged
                parameter.data = torch.randn(parameter.shape, generator=generator)

        def forward(self, x: Any) -> Any:
            h = self.norm(x) + self.table
            left, right = torch.split(torch.relu(self.up(h)), [8, 8], dim=-1)
            return x + self.down(torch.cat([right, left], dim=-1))

    return Block().eval()


@quiet
@pytest.mark.export
@pytest.mark.parametrize(
    "settings",
    [
        {"dynamo": True},
        {"dynamo": True, "optimize": False},
        {"dynamo": True, "opset_version": 17},  # the exporter falls back to 18
        {"dynamo": True, "external_data": True},
        {"dynamo": False, "opset_version": 14},
        {"dynamo": False, "opset_version": 17},
        {"dynamo": False, "opset_version": 17, "do_constant_folding": False},
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()),
)
def test_every_way_to_export_is_read_alike(settings: dict[str, Any], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    module, x = network(torch), torch.randn(3, 5, 8)
    path = tmp_path / "m.onnx"
    names = {"input_names": ["x"], "output_names": ["y"], "verbose": False}
    torch.onnx.export(module, (x,), str(path), **names, **settings)
    assert checker_complaint(path) is None
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(made, module(x).detach().numpy(), atol=1e-5)
    lifted, found = find_weights(load_model(path))
    stored = {t.name: t for t in lifted.proto.graph.initializer}
    # Every parameter is found once, by content: as it is, or turned.
    for name, parameter in module.named_parameters():
        value = parameter.detach().numpy()
        holders = [
            w
            for w in found.weights
            if any(
                np.array_equal(np.squeeze(tensor_array(stored[w.name], lifted.folder)), v)
                for v in (np.squeeze(value), np.squeeze(value).T)
            )
        ]
        assert len(holders) == 1, name
        if value.ndim == 2:
            (holder,) = holders
            turned = holder.shape != value.shape
            assert holder.channel_axis == (1 if turned else 0)
    opset = next(o.version for o in onnx.load(path).opset_import if o.domain == "")
    assert opset >= settings.get("opset_version", 14)
