"""Writing from files: the bytes are those of serializing the whole, and one weight at a time is in memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.models import block, draws, info, model_of
from tqs_onnx.emission import emit, rewritten
from tqs_passes.encode.weight import Form
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model, load_model, serialize
from tqs_passes.files.save import save_model
from tqs_passes.files.spill import Spill
from tqs_passes.files.tensors import tensor_array
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.plan import Assignment, Plan
from tqs_passes.survey.survey import find_weights
from tqs_passes.tier import Tier

WIDTH, LAYERS = 1024, 4


def plan_for(model: Model, bits: int = 4) -> tuple[Model, Plan]:
    lifted, survey = find_weights(model)
    rows = tuple(
        Assignment(
            weight=w.name, label=w.label, shape=w.shape, dtype=w.dtype, tier=Tier(f"INT{bits}"), grid=Grid.SIGNED,
            axis=1, form=Form.DEQUANTIZE, rounding="mse", n_bytes=0, error_energy=0.0,
        )
        for w in survey.weights
        if len(w.shape) == 2
    )  # fmt: skip
    return lifted, Plan(
        source_sha256="0" * 64, profile="fast", assignments=rows, n_bytes=0, source_bytes=0, constants="small"
    )


def chain(folder: Path) -> Path:
    """A chain of large matrices, in an external data file."""
    weights = [numpy_helper.from_array(draws(i, WIDTH, WIDTH), f"w{i}") for i in range(LAYERS)]
    names = ["x", *(f"h{i}" for i in range(LAYERS))]
    nodes = [
        onnx.helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"m{i}")
        for i in range(LAYERS)
    ]
    model = model_of(nodes, [info("x", [1, WIDTH])], [info(names[-1], [1, WIDTH])], weights, 17, folder)
    save_model(model, folder / "m.onnx", external=True)
    return folder / "m.onnx"


def test_a_model_is_written_as_its_serialization(tmp_path: Path) -> None:
    model = block(width=48)
    save_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == serialize(model.proto)


@pytest.mark.parametrize("bits", [3, 8])
def test_emission_through_a_spill_gives_the_bytes_of_emission_in_memory(bits: int, tmp_path: Path) -> None:
    lifted, plan = plan_for(block(width=48), bits)
    emit(lifted, plan, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == serialize(rewritten(lifted, plan).proto)


def test_a_spilled_model_written_with_external_data_holds_the_same_tensors(tmp_path: Path) -> None:
    lifted, plan = plan_for(load_model(chain(tmp_path)))
    expected = {t.name: numpy_helper.to_array(t) for t in rewritten(lifted, plan).proto.graph.initializer}
    with Spill(tmp_path) as spill:
        save_model(rewritten(lifted, plan, spill=spill), tmp_path / "o.onnx", external=True)
    stored = load_model(tmp_path / "o.onnx")
    assert {t.name for t in stored.proto.graph.initializer} == set(expected)
    for tensor in stored.proto.graph.initializer:
        np.testing.assert_array_equal(tensor_array(tensor, stored.folder), expected[tensor.name])


def test_emission_holds_less_than_twice_the_largest_weight(tmp_path: Path) -> None:
    """Besides the weight itself, which is a map of the file: its levels, their packed form, and blocks on the way."""
    lifted, plan = plan_for(load_model(chain(tmp_path)))
    tracemalloc.start()
    emit(lifted, plan, tmp_path / "o.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * WIDTH * WIDTH * 4


def test_a_spill_leaves_no_file(tmp_path: Path) -> None:
    with Spill(tmp_path) as spill:
        spill.take([numpy_helper.from_array(draws(0, 64, 64), "w")])
    assert list(tmp_path.iterdir()) == []


def test_data_that_grew_short_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = load_model(chain(tmp_path))
    with (tmp_path / "m.onnx.data").open("r+b") as stream:
        stream.truncate(WIDTH)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="too short"):
        save_model(model, tmp_path / "o.onnx", external=False)
    assert sorted(tmp_path.iterdir()) == before
