"""The CUDA provider, where there is one: values that stay on the device, and scores that are those of the CPU."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import tqs_onnx as tqs
from tests.rollouts import forecaster, linear, opened, scored, spec_of, values
from tqs_onnx.emission import emit
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout import gauge
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.engine import Engine
from tqs_onnx.rollout.options import RunOptions, SessionOptions
from tqs_onnx.rollout.session import Session, Value, open_session, probe_provider
from tqs_onnx.scoring.plan.options import EarlyStop
from tqs_passes.encode.weight import Encoding, Form
from tqs_passes.errors import InputError
from tqs_passes.grids.grid import Grid
from tqs_passes.plan.assigned import reference_weight
from tqs_passes.plan.plan import Assignment, Compute, Plan, ServingTarget
from tqs_passes.plan.targets import Serving
from tqs_passes.tier import Tier


@cache
def why_not() -> str | None:
    """Return why CUDA does not work here, or None."""
    return probe_provider("cuda")


@pytest.fixture(autouse=True)
def _with_cuda() -> None:
    if why_not() is not None:
        pytest.skip(f"no CUDA here: {why_not()}")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return opened(tmp_path, forecaster(width=64, hidden=128))


def held_on(source: Source, contexts: Contexts) -> tuple[Engine, Session]:
    session = open_session(source.path, provider="cuda")
    return Engine(session, spec_of(), contexts), session


def test_what_a_rollout_is_compared_with_stays_on_the_device(source: Source) -> None:
    engine, _ = held_on(source, Contexts({"x": values(3, 64)}, {}))
    held = engine.hold()
    assert {v.raw.device_name() for v in held.outputs(0, 1).values()} == {"cuda"}


def test_only_sums_come_to_the_host(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = held_on(source, Contexts({"x": values(3, 64)}, {}))
    held = engine.hold()
    sizes: list[int] = []
    plain = Value.numpy
    monkeypatch.setattr(Value, "numpy", lambda self: sizes.append(self.n_bytes) or plain(self))
    squares = engine.squares(held)
    assert sizes == [3 * 8] * 4
    assert not squares.outputs["y"].any()  # the same rollout again


def test_every_node_of_a_gauge_runs_on_the_device(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []
    plain = gauge.open_session

    def spied(model: bytes, **options: object) -> Session:
        made.append(model)
        return plain(model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gauge, "open_session", spied)
    held_on(source, Contexts({"x": values(3, 64)}, {}))[0].hold()
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ort.InferenceSession(made[0], settings, providers=["CUDAExecutionProvider"])  # raises where one does not


def errors(folder: Path, options: SessionOptions) -> np.ndarray:
    """Return by how much a product of 256 terms is off on the device."""
    matrix, x = values(256, 256), values(64, 256, seed=1)
    source = opened(folder, linear(matrix))
    session = open_session(source.path, provider="cuda", options=options)
    made = Engine(session, spec_of(1), Contexts({"x": x}, {})).run().outputs["y"][:, 0]
    return np.abs(made - x.astype(np.float64) @ matrix.astype(np.float64))


def test_matrix_products_are_not_rounded_to_tf32(tmp_path: Path) -> None:
    # a sum of 256 float32 products is off by some 1e-6 of its size, TF32's by some 1e-3
    assert errors(tmp_path, RunOptions("cuda").for_scoring()).max() < 1e-4


def test_a_file_as_served_is_rounded_to_tf32_where_the_device_can(tmp_path: Path) -> None:
    """If this fails on a card with tensor cores, what is verified is not what is served."""
    served = errors(tmp_path, RunOptions("cuda").for_serving()).max()
    assert served > 1e-4 or "NVIDIA_TF32_OVERRIDE" in os.environ


def test_every_node_of_the_model_runs_on_the_device(source: Source) -> None:
    strict = RunOptions("cuda", strict_device=True).for_scoring()
    session = open_session(source.path, provider="cuda", options=strict)
    assert session.placement is not None
    assert session.placement.nodes > 0
    assert not session.placement.on_cpu


def test_a_limit_of_device_memory_is_kept(source: Source) -> None:
    little = RunOptions("cuda", max_memory=1 << 20).for_scoring()
    session = open_session(source.path, provider="cuda", options=little)
    engine = Engine(session, spec_of(), Contexts({"x": np.zeros((4096, 64), np.float32)}, {}), batch=4096)
    with pytest.raises(InputError):
        engine.run()


@pytest.mark.parametrize("tier", [Tier.INT8, Tier.INT4, Tier.INT2])
def test_a_packed_matrix_is_multiplied_as_planned(tmp_path: Path, tier: Tier) -> None:
    source = opened(tmp_path, linear(values(256, 256, scale=1 / 16)))
    (weight,) = source.survey.weights
    common = {"weight": weight.name, "label": weight.label, "shape": weight.shape, "dtype": weight.dtype}
    stored = {
        "tier": tier,
        "grid": Grid.SIGNED,
        "axis": weight.channel_axis,
        "form": Form.NBITS,
        "rounding": "mse",
    }
    a = Assignment(encoding=Encoding.PLANES, n_bytes=0, error_energy=0, **common, **stored)
    plan = Plan(source_sha256=source.sha256, profile="small", assignments=(a,), n_bytes=0, source_bytes=0)
    emit(source.lifted, plan, tmp_path / "packed.onnx")
    matrix = reference_weight(a, numpy_helper.to_array(source.lifted.proto.graph.initializer[0]))
    for rows in (1, 64):  # another kernel for a few rows
        x = values(rows, 256, seed=3)
        session = open_session(tmp_path / "packed.onnx", provider="cuda")
        made = Engine(session, spec_of(1), Contexts({"x": x}, {}), batch=rows).run().outputs["y"][:, 0]
        np.testing.assert_allclose(made, x.astype(np.float64) @ matrix.astype(np.float64), atol=1e-4)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_blocks_compute_in_16_bits_on_the_device(source: Source, tmp_path: Path, kind: str) -> None:
    x = values(6, 64)
    data = tqs.load_data(source, spec_of(4), Contexts({"x": x[:3]}, {}), Contexts({"x": x[3:]}, {}))
    options = tqs.QuantizeOptions(
        tqs.Budget(1.8),
        serving=Serving(target=ServingTarget.ORT_CUDA, compute=Compute(dtype=kind)),
        run=RunOptions("cuda"),
    )
    found = tqs.quantize(source, data, options, tmp_path / "run").verification
    assert found.tf32_gap is not None
    assert 0 < found.drift.total < 0.2


@pytest.mark.parametrize("more", [{}, {"early_stop": EarlyStop(1e-9)}, {"batch": 2}, {"group_test": True}])
def test_scores_are_those_of_the_cpu(source: Source, more: dict[str, object]) -> None:
    x = values(3, 64)
    here = scored(source, spec_of(8), x, **more)
    there = scored(source, spec_of(8), x, provider="cuda", **more)
    assert [w.status for w in there.weights] == [w.status for w in here.weights]
    for a, b in zip(there.weights, here.weights, strict=True):
        assert a.gamma_task == pytest.approx(b.gamma_task, abs=1e-3)
    assert there.noise_floor == 0.0


def test_a_sweep_gives_the_same_bits_again(source: Source) -> None:
    x = values(3, 64)
    first, again = (scored(source, spec_of(), x, provider="cuda") for _ in range(2))
    assert first.to_json() == again.to_json()
