"""`hdf5_trial`: a file that HDF5 crashes on, or never finishes, is one line; a sound or plainly wrong one passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tqs_onnx.rollout.contexts import hdf5_trial
from tqs_onnx.rollout.contexts.dataset import read_named
from tqs_onnx.rollout.contexts.hdf5_trial import require_readable
from tqs_passes.errors import InputError

h5py = pytest.importorskip("h5py", reason="h5py is not installed (tqs-onnx[data])")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "a.nc", "w") as made:
        made["group/x"] = np.arange(6.0).reshape(2, 3)
        made["group/x"].attrs["units"] = "K"
        made["none"] = np.zeros((0, 2))
    return tmp_path / "a.nc"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("while True: pass", "HDF5 does not come to an end of it. Get the file again: it is damaged"),
        ("import os; os.abort()", r"crashes HDF5 \(SIGABRT\). Get the file again"),
        ("import os; os.kill(os.getpid(), 9)", "as it does when memory is short. Free memory"),
    ],
)
def test_a_file_that_ends_the_child_is_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    monkeypatch.setattr(hdf5_trial, "VISIT", body)
    monkeypatch.setattr(hdf5_trial, "CPU_S", 1)
    with pytest.raises(InputError, match=said):
        read_named(file)


def test_a_disk_that_does_not_answer_is_no_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_trial, "VISIT", "import time; time.sleep(60)")
    monkeypatch.setattr(hdf5_trial, "WALL_S", 0.5)
    with pytest.raises(
        InputError, match=r"waited for the disk for more than 0.5 s. Copy it to a disk that answers"
    ):
        require_readable(file)


def test_a_file_that_hdf5_reads_or_refuses_passes(file: Path, tmp_path: Path) -> None:
    require_readable(file)
    (tmp_path / "torn.nc").write_bytes(file.read_bytes()[:900])
    require_readable(tmp_path / "torn.nc")


def test_an_exception_in_the_child_is_left_to_the_reader(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = hdf5_trial.VISIT.replace("    pass  #", "    import os; os.abort()  #")
    monkeypatch.setattr(hdf5_trial, "VISIT", told)
    require_readable(file)
    with h5py.File(file, "r+") as held:
        held.attrs["reference"] = np.array([1, 2])
    raw = file.read_bytes()
    file.write_bytes(raw[: raw.index(b"OHDR")] if b"OHDR" in raw else raw[:600])
    with pytest.raises(InputError, match="SIGABRT"):
        require_readable(file)
