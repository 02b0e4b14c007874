"""Files that are larger than they look, or have no end, are refused before they take memory."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from tqs_onnx.jobs.build import read_build
from tqs_onnx.jobs.pareto import read_pareto
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.spec.signature import signature_of
from tqs_onnx.rollout.spec.spec import load_spec, parse_spec
from tqs_onnx.scoring.scores import read_scores
from tqs_onnx.verification.manifest import read_manifest
from tqs_passes.errors import InputError
from tqs_passes.files.text import read_text
from tqs_passes.plan.plan import read_plan

READERS = [load_spec, read_build, read_plan, read_scores, read_manifest, read_pareto]
SPEC = """version = 1
rollout = { steps = 2, batch_axis = 0 }
feedback = [{ output = "y", input = "x", mode = "replace" }]
trajectory = { outputs = ["y"] }
"""
SIGNATURE = signature_of(
    parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[b, 3] x) => (float[b, 3] y) {}')
)


def peak_of(action: Callable[[], object]) -> float:
    """Return the most bytes that Python and NumPy held while an action was refused."""
    tracemalloc.start()
    with pytest.raises(InputError):
        action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("reader", READERS)
def test_a_text_without_an_end_is_refused_after_its_first_block(reader: Callable[[Path], object]) -> None:
    assert peak_of(lambda: reader(Path("/dev/zero"))) < 8e6


def test_a_text_above_its_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("#" * (2 << 20))
    with pytest.raises(OSError, match="more than 1048576 bytes"):
        read_text(tmp_path / "a.toml", 1 << 20)


@pytest.mark.parametrize("value", ["[" * 3000 + "]" * 3000, "9" * 5000])
@pytest.mark.parametrize("reader", [load_spec, read_build])
def test_a_toml_that_python_cannot_parse_is_one_line(
    tmp_path: Path, reader: Callable[[Path], object], value: str
) -> None:
    (tmp_path / "a.toml").write_text(f"a = {value}\n")
    with pytest.raises(InputError, match="TOML") as caught:
        reader(tmp_path / "a.toml")
    assert "\n" not in str(caught.value)


def with_member(folder: Path, name: str, header: bytes, body: bytes) -> Path:
    """Return an archive with one more member beside a good x."""
    path = folder / "c.npz"
    np.savez(path, x=np.ones((2, 3), np.float32))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", header + body)
    return path


def header_of(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def load(path: Path) -> object:
    return load_contexts(path, parse_spec(SPEC), SIGNATURE)


def test_an_array_that_is_no_input_is_refused_before_it_is_read(tmp_path: Path) -> None:
    n = 2 << 20
    path = with_member(tmp_path, "junk", header_of((n,)), bytes(4 * n))
    with pytest.raises(InputError, match="array 'junk' is not an input of the model"):
        load(path)
    assert peak_of(lambda: load(path)) < 4e6  # it would take 8 MiB


def test_an_array_of_a_wrong_shape_is_refused_before_it_is_read(tmp_path: Path) -> None:
    n = 2 << 20
    path = tmp_path / "c.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header_of((1, n)) + bytes(4 * n))
    assert peak_of(lambda: load(path)) < 4e6


def test_a_header_that_promises_more_than_is_stored_is_refused(tmp_path: Path) -> None:
    path = with_member(tmp_path, "truth/y", header_of((2, 1 << 40, 3)), b"")
    with pytest.raises(InputError, match="cannot be read as NumPy arrays"):
        load(path)


def test_more_than_the_free_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, x=np.ones((2, 3), np.float32))
    monkeypatch.setattr("tqs_onnx.rollout.contexts.archive.free_bytes", lambda: 23)
    with pytest.raises(InputError, match="its arrays take 24 bytes, but 23 are free"):
        load(path)
