"""Measurements on disk: what is read back is what was measured, and every failure is one line."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.rollouts import bed_of, forecaster, opened, spec_of, values
from tqs_onnx.rollout.contexts.context_set import Contexts, contexts_hash
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.measure.mounts import network_filesystem
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_onnx.scoring.score import score
from tqs_passes.errors import InputError

M = Measurement(values(2, 3).astype(np.float64) / 3, np.array([1 / 3]), 1e-300, 4)


def test_a_measurement_comes_back_bit_for_bit(tmp_path: Path) -> None:
    with Results(tmp_path / "s.sqlite") as results:
        results.put("job", [("key", M)])
    with Results(tmp_path / "s.sqlite") as results:
        back = results.get("key")
    assert back is not None
    assert back.energy.tobytes() == M.energy.tobytes()
    assert back.energy.shape == (2, 3)
    assert (back.variables.tolist(), back.delta_sq, back.steps, back.finite) == ([1 / 3], 1e-300, 4, True)


def test_several_measurements_are_kept_all_or_none(tmp_path: Path) -> None:
    with Results(tmp_path / "s.sqlite") as results:
        results.put("job", [("first", M)])

        def broken() -> object:
            yield "second", M
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            results.put("job", broken())
        assert results.known(["first", "second"]) == {"first"}


def test_the_store_uses_a_write_ahead_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqs_onnx.scoring.measure.store.mounts", lambda: "1 0 0:1 / / rw - ext4 /dev/sda rw")
    with Results(tmp_path / "s.sqlite") as results:
        results.put("job", [("key", M)])
        assert results.note == ""
        assert (tmp_path / "s.sqlite-wal").exists()


def test_where_no_write_ahead_log_can_be_kept_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLog(sqlite3.Connection):
        def execute(self, sql: str, *more: object) -> sqlite3.Cursor:
            if "WAL" in sql:
                raise sqlite3.OperationalError("locking protocol")
            return super().execute(sql, *more)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=NoLog, **k))
    with Results(tmp_path / "s.sqlite") as results:
        assert "rollback journal" in results.note
        results.put("job", [("key", M)])
        assert results.known(["key"]) == {"key"}


def test_on_a_network_file_system_a_rollback_journal_is_used_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Results(tmp_path / "s.sqlite") as results:  # made elsewhere, with a log
        results.put("job", [("key", M)])
    monkeypatch.setattr("tqs_onnx.scoring.measure.store.mounts", lambda: "1 0 0:1 / / rw - nfs4 server:/ rw")
    with Results(tmp_path / "s.sqlite") as results:
        assert results.note.startswith("nfs4, a network file system, does not support a write-ahead log")
        results.put("job", [("more", M)])
        assert not (tmp_path / "s.sqlite-wal").exists()
        assert results.known(["key", "more"]) == {"key", "more"}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/data/run", "nfs4"),
        ("/data/local/run", None),
        ("/data sets", "fuse.sshfs"),
        ("/database", None),
        ("/over", "cifs"),
    ],
)
def test_the_innermost_and_last_mount_tells_the_file_system(folder: str, kind: str | None) -> None:
    table = """
1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
2 1 0:50 / /data rw - nfs4 server:/data rw
3 2 8:2 / /data/local rw - xfs /dev/sdb1 rw
4 1 0:51 / /data\\040sets rw - fuse.sshfs me@server: rw
5 1 8:3 / /over rw - ext4 /dev/sdc1 rw
6 5 0:52 / /over rw - cifs //server/share rw"""
    assert network_filesystem(Path(folder), table) == kind


def test_a_store_that_can_only_be_read_gives_one_line_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Results(tmp_path / "s.sqlite") as results:
        results.put("job", [("key", M)])
    before = (tmp_path / "s.sqlite").read_bytes()
    connect = sqlite3.connect
    read_only = f"file:{tmp_path / 's.sqlite'}?mode=ro"
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(read_only, uri=True, **k))
    with pytest.raises(InputError, match="cannot be written"), Results(tmp_path / "s.sqlite") as results:
        results.put("job", [("more", M)])
    assert (tmp_path / "s.sqlite").read_bytes() == before


def test_a_store_without_measurements_is_not_left_behind(tmp_path: Path) -> None:
    with Results(tmp_path / "s.sqlite"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_refused_in_one_line_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_text("scores, but on paper" * 100)
    with pytest.raises(InputError, match="is not a store of measurements"):
        Results(tmp_path / "s.sqlite")
    assert (tmp_path / "s.sqlite").read_text().startswith("scores, but")


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE payments (amount REAL)",
        "CREATE VIEW measurement AS SELECT 1",
        "CREATE TABLE job (id); CREATE TRIGGER t AFTER INSERT ON job BEGIN DELETE FROM job; END",
    ],
)
def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path, made: str) -> None:
    with sqlite3.connect(tmp_path / "s.sqlite") as database:
        database.executescript(made)
    database.close()
    before = (tmp_path / "s.sqlite").read_bytes()
    with pytest.raises(InputError, match="is not a store of measurements"):
        Results(tmp_path / "s.sqlite")
    assert (tmp_path / "s.sqlite").read_bytes() == before


@pytest.mark.parametrize("name", ["s.sqlite", "s.sqlite-wal", "s.sqlite-journal"])
def test_no_link_leads_sqlite_to_another_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{name}: is a link"):
        Results(tmp_path / "run" / "s.sqlite")
    assert not (tmp_path / "elsewhere").exists()


def test_a_store_of_a_later_format_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(InputError, match="format 99"):
        Results(tmp_path / "s.sqlite")


def test_a_folder_that_cannot_be_written_to_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Results(tmp_path / "missing" / "s.sqlite")


def test_a_full_disk_gives_one_line_and_keeps_what_was_measured(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: writes fail from some point on."""
    store = tmp_path / "s.sqlite"
    script = f"""
import resource, numpy as np
from pathlib import Path
from types import SimpleNamespace
from tqs_onnx.scoring.measure.meter import Measurement
from tqs_onnx.scoring.measure.store import Results
from tqs_onnx.scoring.plan.strategy import Strategy
from tqs_passes.errors import InputError
m = Measurement(np.ones((8, 64)), np.ones(4), 1.0, 4)
try:
    with Results(Path({str(store)!r})) as results:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for i in range(1000):
            results.put("job", [(str(i), m)])
            print(i)
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120
    )
    *counted, line = done.stdout.splitlines()
    assert str(store) in line
    with Results(store) as results:
        assert results.known(counted) == set(counted)
    assert 0 < len(counted) < 1000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000


@pytest.mark.parametrize(("free", "said"), [(0, "the disk is full"), (1 << 30, "cannot be written")])
def test_an_io_error_of_sqlite_on_a_full_disk_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    class Broken(sqlite3.Connection):
        def executemany(self, *_: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("disk I/O error")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Broken, **k))
    room = SimpleNamespace(total=1 << 40, used=(1 << 40) - free, free=free)
    monkeypatch.setattr("tqs_onnx.scoring.measure.store.shutil.disk_usage", lambda _: room)
    with Results(tmp_path / "s.sqlite") as results, pytest.raises(InputError, match=f"s.sqlite: {said}"):
        results.put("job", [("key", M)])


def _swept(folder: Path, out: Path, **changes: object) -> tuple[str, int]:
    """Return the scores and the number of measurements in the store after a sweep."""
    source = opened(folder, forecaster())
    run = {name: changes.pop(name) for name in ("batch", "threads") if name in changes}
    bed = bed_of(source, spec_of(), Contexts({"x": values(2, 16)}, {}), **run)
    scores = score(bed, source.sha256, ScoreOptions(**changes), store=out)
    with sqlite3.connect(out) as database:
        (count,) = database.execute("SELECT count(*) FROM measurement").fetchone()
    database.close()
    return scores.to_json(), count


def test_a_second_sweep_measures_nothing_and_scores_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _swept(tmp_path, tmp_path / "s.sqlite")
    monkeypatch.setattr("tqs_onnx.scoring.score.crew_for", lambda *a: pytest.fail("called a crew"))
    assert _swept(tmp_path, tmp_path / "s.sqlite") == first


@pytest.mark.parametrize(
    "change", [{"units": "raw"}, {"horizons": (1, 3, 4)}, {"batch": 1}, {"strategy": Strategy("expose", 2)}]
)
def test_changing_what_matters_starts_afresh(tmp_path: Path, change: dict[str, object]) -> None:
    _, count = _swept(tmp_path, tmp_path / "s.sqlite")
    assert _swept(tmp_path, tmp_path / "s.sqlite", **change)[1] == 2 * count


@pytest.mark.parametrize("change", [{"threads": 2}, {"dead_below": -50.0}, {"dead_at_minimum": True}])
def test_changing_what_does_not_matter_measures_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    _, count = _swept(tmp_path, tmp_path / "s.sqlite")
    assert _swept(tmp_path, tmp_path / "s.sqlite", **change)[1] == count


def test_another_seed_measures_gauss_probes_again(tmp_path: Path) -> None:
    from tqs_onnx.scoring.plan.probe import Probe, ProbeKind

    def gauss(seed: int) -> Probe:
        return Probe(kind=ProbeKind.GAUSS, seed=seed)

    first, count = _swept(tmp_path, tmp_path / "s.sqlite", probe=gauss(0))
    other, total = _swept(tmp_path, tmp_path / "s.sqlite", probe=gauss(1))
    assert total == 2 * count
    assert first != other


def test_threads_do_not_change_a_score(tmp_path: Path) -> None:
    one = _swept(tmp_path, tmp_path / "one.sqlite", threads=1)
    assert _swept(tmp_path, tmp_path / "two.sqlite", threads=2) == one


def test_further_draws_keep_those_that_were_made(tmp_path: Path) -> None:
    from tqs_onnx.scoring.plan.probe import Probe, ProbeKind

    def gauss(draws: int) -> Probe:
        return Probe(kind=ProbeKind.GAUSS, draws=draws)

    _, two = _swept(tmp_path, tmp_path / "s.sqlite", probe=gauss(2), response_bits=())
    both, three = _swept(tmp_path, tmp_path / "s.sqlite", probe=gauss(3), response_bits=())
    assert (two, three) == (10, 15)
    assert both == _swept(tmp_path, tmp_path / "new.sqlite", probe=gauss(3), response_bits=())[0]


def test_other_deviations_of_the_same_contexts_are_another_job() -> None:
    contexts = Contexts({"x": values(2, 4)}, {}, series=("a", "a"), scales={"a": 1.0})
    assert contexts_hash(contexts) != contexts_hash(replace(contexts, scales={"a": 10.0}))


def test_a_store_that_cannot_be_written_is_read_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sqlite"
    with Results(path) as results:
        results.put("job", [("a", M)])
    before = path.read_bytes()
    monkeypatch.setattr("tqs_onnx.scoring.measure.store.os.access", lambda folder, mode: False)
    with Results(path) as results:
        assert results.get("a") is not None
        results.put("job", [("b", M)])
        assert results.known(["a", "b"]) == {"a", "b"}
        assert "new measurements are not kept" in results.note
    assert path.read_bytes() == before
