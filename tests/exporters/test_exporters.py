"""Exports of TimesFM-2.5 and Aurora-small: names, dead layers, and their rollouts against the packages' own.

What needs the packages is marked `export`: run it with ``pytest -m 'export and not slow'`` where torch, timesfm and
microsoft-aurora are installed; at full size, some minutes and 4 GB: ``pytest -m 'export and slow'``.
"""

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tqs_models import aurora, timesfm
from tqs_models.lean import name_by_content
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.session import SessionOptions, open_session
from tqs_onnx.rollout.spec.check import check_spec
from tqs_onnx.rollout.spec.spec import load_spec
from tqs_passes.errors import InputError
from tqs_passes.files.model import load_model
from tqs_passes.survey.survey import find_weights

quiet = pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself
GRID, LEVELS = (16, 32), (100, 250, 500, 850)
SIZES = {"embed_dim": "64", "encoder_depths": "2,2,2", "decoder_depths": "2,2,2"}


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported model with random weights, and the package's network it was made of."""

    folder: Path
    network: Any
    grid: tuple[int, int] = (0, 0)
    levels: tuple[int, ...] = ()

    def rollout(self, steps: int) -> dict[str, np.ndarray]:
        spec = load_spec(self.folder / "rollout.toml").with_steps(steps)
        session = open_session(self.folder / "model.onnx", options=SessionOptions(threads=1))
        check_spec(spec, session.signature)
        contexts = load_contexts(self.folder / "contexts.npz", spec, session.signature)
        return Engine(session, spec, contexts).run().outputs

    def contexts(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "contexts.npz") as stored:
            return dict(stored)


SMALL_AND_FULL = ["small", pytest.param("full", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SMALL_AND_FULL)
def forecaster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    pytest.importorskip("timesfm", reason="needs the package timesfm and torch")
    folder, layers = tmp_path_factory.mktemp("timesfm"), 2 if request.param == "small" else None
    timesfm.export(folder, contexts=2, settings={} if layers is None else {"layers": str(layers)})
    from tqs_models.timesfm.network import random_network

    return Export(folder, random_network(0, layers))


@pytest.fixture(scope="module", params=SMALL_AND_FULL)
def weather(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    pytest.importorskip("torch", reason="needs torch")
    from tqs_models.aurora.timm_names import stand_in_for_timm

    stand_in_for_timm()
    pytest.importorskip("aurora", reason="needs the package microsoft-aurora")
    folder = tmp_path_factory.mktemp("aurora")
    small = request.param == "small"
    grid, levels, sizes = (GRID, LEVELS, SIZES) if small else ((32, 64), aurora.LEVELS, {})
    aurora.export(folder, grid=grid, levels=levels, contexts=1, settings=sizes)
    from tqs_models.aurora.network import random_network
    from tqs_models.aurora.write import _sizes

    return Export(folder, random_network(0, **_sizes(sizes)), grid, levels)


def named(export: Export) -> dict[str, np.ndarray]:
    graph = onnx.load(export.folder / "model.onnx").graph
    return {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}


def assert_every_parameter_is_found_once(export: Export) -> None:
    labels = [w.label for w in find_weights(load_model(export.folder / "model.onnx"))[1].weights]
    parameters = {n for n, p in export.network.named_parameters() if p.numel() > 1}
    assert parameters <= set(labels)
    assert len(labels) == len(set(labels))


@quiet
@pytest.mark.export
def test_the_timesfm_rollout_equals_the_packages_own_decode(forecaster: Export) -> None:
    import torch

    arrays = forecaster.contexts()
    context, mask = torch.from_numpy(arrays["context"]), torch.from_numpy(arrays["mask"])
    prefill, _, more = forecaster.network.decode(500, context, mask)
    expected = torch.cat([prefill[:, -1], more.reshape(len(context), -1, 10)], dim=1)[:, :500, 5].numpy()
    made = forecaster.rollout(4)["forecast"]
    # The package decodes with a cache of keys and values, the graph without: float32 rounding.
    assert np.abs(made - expected).max() <= 1e-5 * expected.std()


@quiet
@pytest.mark.export
def test_every_timesfm_parameter_is_found_once_under_its_name(forecaster: Export) -> None:
    assert_every_parameter_is_found_once(forecaster)


@quiet
@pytest.mark.export
def test_no_timesfm_layer_is_dead(forecaster: Export) -> None:
    """The package's own initialisation makes the body the identity: its norms start at 0."""
    arrays = named(forecaster)
    assert all(np.abs(arrays[n]).min() > 0 for n in arrays if n.endswith("_ln.scale"))


@quiet
@pytest.mark.export
def test_padding_on_the_left_does_not_change_a_timesfm_forecast(forecaster: Export) -> None:
    session = open_session(forecaster.folder / "model.onnx", options=SessionOptions(threads=1))
    context = forecaster.contexts()["context"]
    padded = np.pad(context, ((0, 0), (64, 0)))
    mask = np.zeros(padded.shape, np.bool_)
    mask[:, :64] = True

    def run(x: np.ndarray, k: np.ndarray) -> np.ndarray:
        return session.run({"context": session.value(x), "mask": session.value(k)})["forecast"].numpy()

    one, other = run(context, np.zeros(context.shape, np.bool_)), run(padded, mask)
    # Rotary positions shift with the padding: sines of other float32 angles.
    assert np.abs(one - other).max() <= 1e-4 * one.std()


@quiet
@pytest.mark.export
def test_the_aurora_rollout_equals_the_packages_own(weather: Export) -> None:
    import aurora as package
    import torch
    from aurora.normalisation import scales

    from tqs_models.aurora.network import START

    arrays = {k: torch.from_numpy(v) for k, v in weather.contexts().items()}
    (rows, columns), surf, atmos = weather.grid, arrays["surf"], arrays["atmos"]
    batch = package.Batch(
        {v: surf[:, :, i] for i, v in enumerate(aurora.SURFACE)},
        {v: arrays["static"][0, i] for i, v in enumerate(aurora.STATIC)},
        {v: atmos[:, :, i] for i, v in enumerate(aurora.ATMOS)},
        package.Metadata(
            lat=torch.linspace(90, -90, rows + 1)[:rows],
            lon=torch.linspace(0, 360, columns + 1)[:columns],
            time=(START,),
            atmos_levels=weather.levels,
        ),
    )
    made = weather.rollout(3)
    with torch.no_grad():
        for step, expected in enumerate(package.rollout(weather.network, batch, steps=3)):
            for i, v in enumerate(aurora.SURFACE):
                error = made["surf_next"][0, step, i] - expected.surf_vars[v][0, 0].numpy()
                # In deviations of each variable; ORT and torch sum in another order.
                assert np.abs(error).max() <= 1e-5 * scales[v]
            for i, v in enumerate(aurora.ATMOS):
                for j, level in enumerate(weather.levels):
                    error = made["atmos_next"][0, step, i, j] - expected.atmos_vars[v][0, 0, j].numpy()
                    assert np.abs(error).max() <= 1e-5 * scales[f"{v}_{level}"]


@quiet
@pytest.mark.export
def test_every_aurora_parameter_is_found_once_under_its_name(weather: Export) -> None:
    assert_every_parameter_is_found_once(weather)


@quiet
@pytest.mark.export
def test_no_aurora_modulation_is_zero(weather: Export) -> None:
    arrays = named(weather)
    modulations = [n for n in arrays if "ln_modulation.1" in n]
    assert modulations
    assert all(np.abs(arrays[n]).max() > 0 for n in modulations)


@quiet
@pytest.mark.export
def test_the_package_works_as_before_after_an_export(weather: Export) -> None:
    """The export replaces functions of the package while it traces, and puts them back."""
    from aurora.model import encoder, fourier

    assert encoder.levels_expansion is fourier.levels_expansion


@pytest.mark.parametrize("model", [timesfm, aurora])
def test_the_rollout_spec_can_be_read(model: Any) -> None:
    assert load_spec(model.rollout()).rollout.batch_axis == 0


def test_the_timesfm_rollout_keeps_500_of_512_medians() -> None:
    spec = load_spec(timesfm.rollout())
    assert (spec.rollout.steps, spec.rollout.length) == (4, 500)
    assert [c.index for c in spec.trajectory.select] == [timesfm.MEDIAN]


def test_the_aurora_rollout_names_nine_variables() -> None:
    spec = load_spec(aurora.rollout())
    assert [v.name for v in spec.variable] == [*aurora.SURFACE, *aurora.ATMOS]


def test_the_time_encoding_repeats_after_a_day_for_the_period_of_a_day() -> None:
    noon = datetime(2020, 6, 1, 12, tzinfo=UTC)
    made = aurora.time_encoding([noon, noon + timedelta(days=1)], width=2 * 256)
    period = np.logspace(0, np.log10(24 * 365.25), 256)
    whole = np.abs(24 / period - np.round(24 / period)) < 1e-3
    hours = noon.timestamp() / 3600
    np.testing.assert_allclose(made[0, :256], np.sin(hours * 2 * np.pi / period), atol=1e-6)
    # The same phase within 2 pi x 1e-3, where the period divides a day that well.
    np.testing.assert_allclose(made[0, :256][whole], made[1, :256][whole], atol=7e-3)


@pytest.mark.parametrize(
    ("model", "arguments", "what"),
    [
        (timesfm, {"grid": (4, 4)}, "no grid"),
        (timesfm, {"settings": {"width": "3"}}, "only the setting layers"),
        (timesfm, {"settings": {"layers": "2"}, "checkpoint": Path("f")}, "random weights only"),
        (aurora, {"grid": (17, 32)}, "not a multiple of 4"),
        (aurora, {"settings": {"width": "3"}}, "unknown setting"),
        (aurora, {"settings": {"embed_dim": "x"}}, "cannot be 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_before_torch_is_needed(
    model: Any, arguments: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=what):
        model.export(tmp_path, **arguments)


def graph_of(**arrays: np.ndarray) -> onnx.ModelProto:
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    nodes = [onnx.helper.make_node("Identity", [n], [f"{n}_out"]) for n in arrays]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors))


def test_a_transposed_tensor_gets_its_name_back() -> None:
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = graph_of(val_1=np.ascontiguousarray(w.T))
    assert name_by_content(model, {"layer.weight": w}) == []
    assert model.graph.initializer[0].name == model.graph.node[0].input[0] == "layer.weight"


def test_a_tensor_that_was_folded_away_is_reported() -> None:
    w = np.arange(6, dtype=np.float32)
    assert name_by_content(graph_of(val_1=2 * w), {"scale": w}) == ["scale"]


def test_two_tensors_of_equal_content_get_a_name_each() -> None:
    w = np.ones(3, np.float32)
    model = graph_of(val_1=w, val_2=w)
    assert name_by_content(model, {"a": w, "b": w}) == []
    assert {t.name for t in model.graph.initializer} == {"a", "b"}
