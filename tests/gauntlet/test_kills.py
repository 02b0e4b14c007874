"""Killed at its file-system events, a command leaves nothing torn; run again it writes what it would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gauntlet.apart import found_apart
from tests.rollouts import forecaster, write_case
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model


def killed(folder: Path, step: int, out: Path, *command: str) -> dict[str, Any]:
    """Return what the harness found."""
    return found_apart("kills", str(folder), str(step), str(out), *command)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("m", ["--format", "triton"]),
        pytest.param("big", ["--format", "triton"], marks=pytest.mark.slow),
        pytest.param("m", ["--format", "olive"], marks=pytest.mark.slow),
    ],
    ids=["triton", "triton-external", "olive"],
)
def test_a_package_appears_at_once_and_the_same_command_completes_it(
    tmp_path: Path, name: str, more: list[str]
) -> None:
    write_case(tmp_path / "in", forecaster())
    save_model(Model(forecaster(48, 96), tmp_path), tmp_path / "in" / "big.onnx", external=True)
    out = tmp_path / "r"
    found = killed(
        *(tmp_path, 2, out, "package", str(tmp_path / "in" / f"{name}.onnx"), *more, "--out", str(out))
    )
    assert found["bad"] == []
    assert found["kills"] > 8
