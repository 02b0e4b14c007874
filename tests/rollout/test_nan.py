"""NaN in the contexts of a model that handles it: allowed where the spec or the graph says so, and nowhere else."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import tqs_onnx as tqs
from tests.rollouts import model, values
from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.rollout.options import RunOptions
from tqs_passes.errors import InputError

SPEC = """version = 1
rollout = { steps = 3, batch_axis = 0 }
feedback = [{ output = "y", input = "x", mode = "replace" }]
trajectory = { outputs = ["y"] }
"""
ALLOWED = SPEC + '[[input]]\ninput = "x"\nallow_nan = true\n'
#: NaN becomes 0: by asking for it, and by what differs from itself.
ASKS = "n = IsNaN(x)  z = Where(n, none, x)  p = MatMul(z, A)  y = Tanh(p)"
HIDES = "q = Equal(x, x)  z = Where(q, x, none)  p = MatMul(z, A)  y = Tanh(p)"


def case(folder: Path, body: str, spec: str, bad: float = np.nan) -> tuple[Path, DataOptions]:
    proto = model(
        f"(float[b, 16] x) => (float[b, 16] y) <float none = {{0.0}}> {{ {body} }}",
        {"A": values(16, 16, scale=0.3)},
    )
    onnx.save(proto, folder / "m.onnx")
    (folder / "rollout.toml").write_text(spec)
    for name, seed in (("contexts", 1), ("eval", 2)):
        x = values(4, 16, seed=seed)
        x[:, 3] = bad
        np.savez(folder / f"{name}.npz", x=x)
    return folder / "m.onnx", DataOptions(*(folder / n for n in ("rollout.toml", "contexts.npz", "eval.npz")))


def test_nan_is_refused_where_nothing_allows_it(tmp_path: Path) -> None:
    path, options = case(tmp_path, HIDES, SPEC)
    with pytest.raises(InputError, match=r"input 'x' holds NaN in context 0 at position \[3\]"):
        read_data(options, open_source(path))


@pytest.mark.parametrize(("body", "spec"), [(HIDES, ALLOWED), (ASKS, SPEC)])
def test_a_model_that_handles_nan_is_quantized(tmp_path: Path, body: str, spec: str) -> None:
    path, options = case(tmp_path, body, spec)
    made = tqs.quantize(
        path, options, tqs.QuantizeOptions(tqs.Budget(compression=1.2), run=RunOptions("cpu", threads=1))
    )
    assert np.isfinite(made.verification.drift.total)


def test_an_infinity_is_refused_even_then(tmp_path: Path) -> None:
    path, options = case(tmp_path, ASKS, ALLOWED, bad=np.inf)
    with pytest.raises(InputError, match="input 'x' holds an infinity"):
        read_data(options, open_source(path))
