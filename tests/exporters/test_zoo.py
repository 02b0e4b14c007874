from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from tqs_models.lean import merge_constants, strip

FOLDER = Path(__file__).parents[2] / "models" / "zoo" / "timesfm_mini"
CONTEXT, OUTPUT = 512, 128


@cache
def session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"])


def forecast(context: np.ndarray) -> np.ndarray:
    return session().run(["forecast"], {"context": context.astype(np.float32)})[0]


@cache
def series() -> np.ndarray:
    """Four daily cycles with a random walk on top, float32 [4, 512]."""
    rng = np.random.default_rng(0)
    walk = 0.1 * rng.standard_normal((4, CONTEXT)).cumsum(axis=1)
    return (np.sin(2 * np.pi * np.arange(CONTEXT) / 24) + walk).astype(np.float32)


@cache
def data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("timesfm_mini_data", FOLDER / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_model_is_at_most_eight_megabytes() -> None:
    assert (FOLDER / "model.onnx").stat().st_size <= 8_000_000


def test_the_file_is_little_more_than_its_weights() -> None:
    model = onnx.load(FOLDER / "model.onnx")
    weights = sum(len(t.raw_data) for t in model.graph.initializer)
    assert model.ByteSize() - weights < 60_000


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_axis_is_dynamic(batch: int) -> None:
    assert forecast(series()[:batch]).shape == (batch, OUTPUT)


def test_the_batch_axis_is_named_batch() -> None:
    graph = onnx.load(FOLDER / "model.onnx").graph
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in (*graph.input, *graph.output)} == {"batch"}


def test_a_forecast_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    # Kernels sum in another order for another batch: a few float32 roundings of values near 1.
    np.testing.assert_allclose(forecast(series())[:1], forecast(series()[:1]), atol=1e-5)


@pytest.mark.parametrize(("scale", "offset"), [(7.0, 0.0), (1.0, 300.0), (0.01, -5.0), (250.0, 1000.0)])
def test_scaling_and_shifting_a_series_scales_and_shifts_its_forecast(scale: float, offset: float) -> None:
    moved = (scale * series() + offset).astype(np.float32)
    expected = scale * forecast(series()) + offset
    # float32 stores the moved series to 6e-8 of its largest value; the network amplifies that a few times.
    tolerance = 2e-5 * (scale + 0.1 * abs(offset))
    np.testing.assert_allclose(forecast(moved), expected, rtol=0, atol=tolerance)


def test_a_constant_series_is_continued() -> None:
    np.testing.assert_allclose(forecast(np.full((1, CONTEXT), 42.0)), 42.0, rtol=1e-5)


def test_a_series_that_starts_constant_gives_finite_values() -> None:
    context = series().copy()
    context[:, :200] = context[:, 200:201]
    assert np.isfinite(forecast(context)).all()


def test_every_weight_keeps_the_name_of_its_parameter() -> None:
    graph = onnx.load(FOLDER / "model.onnx").graph
    matrices = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    stored = {t.name for t in graph.initializer} & matrices
    layers = {
        f"layers.{i}.{p}.weight" for i in range(6) for p in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    }
    blocks = {f"{b}.{p}.weight" for b in ("tokenizer", "head") for p in ("hidden", "output", "skip")}
    assert stored == layers | blocks


def test_the_file_carries_no_trace_of_the_exporter() -> None:
    model = onnx.load(FOLDER / "model.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not model.graph.value_info


@cache
def verbose_model() -> bytes:
    """A model as an exporter writes it: equal constants under two names, traces, long value names."""
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    main (float[batch, 4] x) => (float[batch, 4] y)
    <int64[2] shape_a = {-1, 4}, int64[2] shape_b = {-1, 4},
     float[4] w = {1, 1, 1, 1}, float[4] v = {1, 1, 1, 1}>
    {
        a_value_with_a_long_name = Reshape(x, shape_a)
        another = Reshape(a_value_with_a_long_name, shape_b)
        third = Mul(another, w)
        y = Mul(third, v)
    }
    """
    model = onnx.parser.parse_model(text)
    model.graph.node[0].metadata_props.add(key="stack_trace", value="File ...")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("another", 1, ["batch", 4]))
    return model.SerializeToString()


def test_equal_shapes_get_one_name_and_equal_weights_keep_theirs() -> None:
    model = onnx.load_from_string(verbose_model())
    assert merge_constants(model) == 1
    assert {t.name for t in model.graph.initializer} == {"shape_a", "w", "v"}
    assert [list(node.input)[1] for node in model.graph.node] == ["shape_a", "shape_a", "w", "v"]


def test_stripping_removes_traces_and_shortens_only_inner_names() -> None:
    model = onnx.load_from_string(verbose_model())
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    assert not model.graph.node[0].metadata_props
    assert not model.graph.value_info
    assert [list(node.output) for node in model.graph.node] == [
        ["Reshape_0"],
        ["Reshape_1"],
        ["Mul_2"],
        ["y"],
    ]


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself
def test_a_parameter_that_is_transposed_keeps_its_name_and_its_values(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the [export] extra")
    from tqs_models.lean import export_lean

    module = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False)).eval()
    export_lean(module, torch.randn(2, 5, 4), tmp_path / "m.onnx", input_name="x", output_name="y")
    (stored,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert stored.name == "0.weight"
    np.testing.assert_array_equal(numpy_helper.to_array(stored), module[0].weight.detach().numpy())


def test_missing_cells_repeat_the_last_measured_one() -> None:
    values = np.array([[-9999.0, 1.0], [2.0, -9999.0], [-9999.0, 3.0]])
    np.testing.assert_array_equal(data().forward_filled(values), [[2.0, 1.0], [2.0, 1.0], [2.0, 3.0]])


def test_the_rollout_beats_persistence_on_the_test_rows_of_etth1() -> None:
    path = data().data_root() / "ETT-small" / "ETTh1.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not under $TQS_DATA (or ../shared/data): the skill cannot be judged")
    values = data().read_table(path)
    scale = values[:8640].std(axis=0)[:, None]
    starts = range(11520, 14400 - CONTEXT - 500 + 1, 384)
    cut = np.concatenate([(values[s : s + CONTEXT + 500].T / scale) for s in starts]).astype(np.float32)
    context, truth = cut[:, :CONTEXT], cut[:, CONTEXT:]
    window, parts = context, []
    for _ in range(4):
        parts.append(forecast(window))
        window = np.concatenate([window[:, OUTPUT:], parts[-1]], axis=1)
    made = np.concatenate(parts, axis=1)[:, :500]
    # Measured: 0.8 of persistence; 0.95 leaves room for another seed.
    assert np.abs(made - truth).mean() < 0.95 * np.abs(context[:, -1:] - truth).mean()
