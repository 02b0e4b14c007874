"""On a disk that is too small a command ends in one line; with room, the same command writes what it should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gauntlet.apart import found_apart
from tests.gauntlet.commands import COMMANDS, FILES, command_of
from tests.rollouts import forecaster, write_case

_APART = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run([*_APART, "true"], capture_output=True).returncode:
        pytest.skip("a file system of one's own needs a Linux that lets users open a namespace")


def filled(folder: Path, n: int, *command: str) -> dict[str, Any]:
    """Return what the harness found; it mounts its disks in a namespace of its own."""
    disk = folder / "disk"
    disk.mkdir()
    return found_apart("disks", str(disk), str(n), *command, under=tuple(_APART))


def test_a_package_that_does_not_fit_names_its_folder_and_leaves_nothing(tmp_path: Path) -> None:
    case = write_case(tmp_path / "in", forecaster())
    found = filled(tmp_path, 2, "package", str(case.model), "--format", "triton", "--out", "{}/out")
    assert found["bad"] == []
    assert found["full"] == 2
    said = (
        f"tqs: error: {tmp_path}/disk/out/m: the disk is full. Free disk space and run the same command again"
    )
    assert found["lines"] == [said]


@pytest.mark.slow
@pytest.mark.parametrize("command", [*COMMANDS, "score --workers 2"])
def test_no_command_loses_or_tears_anything_on_a_full_disk(tmp_path: Path, command: str) -> None:
    name, *more = command.split()
    case = write_case(tmp_path / "in", forecaster(hidden=256))
    words = command_of(name, case, tmp_path)
    found = filled(tmp_path, 4, *words, *more, "--out", str(Path("{}", FILES.get(name, "out"))))
    assert found["bad"] == []
    assert found["full"] >= 3
