"""Temporary files and claims: what a killed process left is removed, what a living one uses is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tqs_passes.errors import InputError
from tqs_passes.files.atomic import atomic_file, write_text
from tqs_passes.files.temporary import claimed, sweep, temporary_file, temporary_folder

#: Writes, claims, says so, and waits to be killed.
_WRITER = """
import sys
from pathlib import Path
from tqs_passes.files.atomic import atomic_file
from tqs_passes.files.temporary import claimed, temporary_folder
folder = Path(sys.argv[1])
with claimed(folder / "run", "process A"), temporary_folder(folder) as made, atomic_file(folder / "f") as tmp:
    (made / "inside").write_text("half")
    tmp.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def writer(folder: Path) -> subprocess.Popen[str]:
    """Return a process in the midst of writing into a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(p.suffix for p in (folder / ".tqs").iterdir()) if (folder / ".tqs").exists() else []


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        write_text(tmp_path / "other", "whole")
        assert names(tmp_path) == [".claim", ".lock", ".lock", ".tmp", ".tmp"]  # all in use
        process.kill()
    assert names(tmp_path) == [".claim", ".lock", ".lock", ".tmp", ".tmp"]
    write_text(tmp_path / "f", "whole")
    assert names(tmp_path) == [".claim"]
    with claimed(tmp_path / "run", "process B"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "other"]


def test_an_output_is_claimed_by_one_process_at_a_time_and_the_next_is_told_by_whom(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        with (
            pytest.raises(InputError, match="run: is being written by process A"),
            claimed(tmp_path / "run", "process B"),
        ):
            pass
        with claimed(tmp_path / "run2", "process B"):  # another output
            pass
        process.kill()
    with claimed(tmp_path / "run", "process B"):
        assert (tmp_path / ".tqs").is_dir()


def test_a_job_may_claim_what_the_job_around_it_holds_but_another_thread_may_not(tmp_path: Path) -> None:
    found: list[str] = []

    def other() -> None:
        try:
            with claimed(tmp_path / "run", "B"):
                found.append("claimed")
        except InputError as error:
            found.append(error.what)

    with claimed(tmp_path / "run", "A"):
        with claimed(tmp_path / ".." / tmp_path.name / "run", "A"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == ["is being written by A"]
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_removed_unless_it_was_renamed(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as made:
        (made / "f").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with temporary_folder(tmp_path) as made:
        (made / "f").write_text("x")
        made.rename(tmp_path / "kept")
    assert [p.name for p in tmp_path.rglob("*")] == ["kept", "f"]


def test_a_temporary_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    write_text(tmp_path / "plain", "")
    (tmp_path / "by hand").touch()
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "by hand").stat().st_mode


def test_threads_that_write_into_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def write(n: int) -> None:
        try:
            for i in range(60):
                write_text(tmp_path / f"{n}", f"{i}")
        except BaseException as error:  # noqa: BLE001  (told below)
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_foreign_files_in_the_folder_of_temporary_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".tqs").mkdir()
    (tmp_path / ".tqs" / "notes").write_text("mine")
    sweep(tmp_path)
    with temporary_file(tmp_path), atomic_file(tmp_path / "f"):
        pass
    assert (tmp_path / ".tqs" / "notes").read_text() == "mine"


def test_a_lock_never_follows_a_link_out_of_its_folder(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        (claim,) = (tmp_path / ".tqs").iterdir()
    valued = tmp_path / "valued"
    valued.write_text("not ours")
    claim.parent.mkdir()
    claim.symlink_to(valued)
    with pytest.raises(InputError, match="cannot write to this folder"), claimed(tmp_path / "run"):
        pass
    assert valued.read_text() == "not ours"


@pytest.mark.parametrize("where", ["elsewhere", "nowhere"])
def test_a_folder_of_temporary_files_that_is_a_link_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("1-0.lock", "1-0.tmp"):
        (tmp_path / "elsewhere" / name).touch()
    (tmp_path / "out" / ".tqs").symlink_to(tmp_path / where)
    with pytest.raises(InputError, match="cannot write to this folder"):
        write_text(tmp_path / "out" / "f", "whole")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2
    assert not (tmp_path / "nowhere").exists()
