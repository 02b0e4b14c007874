"""Contexts that memory has no room for lie in temporary files: where, never what."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.rollouts import REPLACE, bed_of, forecaster, opened, values
from tqs_onnx.inputs.data import DataOptions, read_data
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts import archive, shelf
from tqs_onnx.rollout.contexts.context_set import (
    Contexts,
    cast,
    check_finite,
    contexts_hash,
    kept_within,
    n_held_bytes,
    n_mapped_bytes,
)
from tqs_onnx.rollout.contexts.load import load_contexts
from tqs_onnx.rollout.contexts.shelf import Shelf, is_mapped, mapped
from tqs_onnx.rollout.injection import exposable
from tqs_onnx.rollout.spec.signature import Port
from tqs_onnx.rollout.spec.spec import parse_spec
from tqs_onnx.scoring.estimate import estimate
from tqs_onnx.scoring.plan.memory import memory_of
from tqs_onnx.scoring.plan.options import ScoreOptions
from tqs_onnx.scoring.plan.sweep_plan import plan_sweep
from tqs_onnx.scoring.score import score
from tqs_passes.errors import InputError

SPEC = parse_spec(REPLACE.format(steps=4))
TRUTH = {"truth/y": values(3, 4, 16, seed=3)}
SERIES = np.array(["a", "b", "c"])


def source_in(folder: Path) -> Source:
    return opened(folder, forecaster())


def npz(folder: Path, n: int = 3, *, packed: bool = False) -> Path:
    save = np.savez_compressed if packed else np.savez
    save(folder / "c.npz", x=values(n, 16), **TRUTH, series=SERIES)
    return folder / "c.npz"


def npy(folder: Path) -> Path:
    (folder / "c" / "truth").mkdir(parents=True)
    for name, array in {"x": values(3, 16), **TRUTH, "series": SERIES}.items():
        np.save(folder / "c" / f"{name}.npy", array)
    return folder / "c"


def columns(folder: Path) -> Path:
    """An array whose first axis is the fastest."""
    np.savez(folder / "c.npz", x=np.asfortranarray(values(3, 16)), **TRUTH, series=SERIES)
    return folder / "c.npz"


@pytest.mark.parametrize("write", [npz, npy, columns, lambda folder: npz(folder, packed=True)])
def test_contexts_in_files_are_those_in_memory(tmp_path: Path, write) -> None:
    path, signature = write(tmp_path), source_in(tmp_path).signature
    memory = load_contexts(path, SPEC, signature)
    filed = load_contexts(path, SPEC, signature, most_bytes=0)
    assert (n_mapped_bytes(memory), n_held_bytes(filed)) == (0, 0)
    assert n_mapped_bytes(filed) == n_held_bytes(memory) == 4 * (3 * 16 + 3 * 4 * 16)
    assert contexts_hash(filed) == contexts_hash(memory)
    assert filed.truth["y"].tobytes() == memory.truth["y"].tobytes()
    some, same = filed.take([2, 0]), memory.take([2, 0])
    assert n_held_bytes(some) == 0
    assert contexts_hash(some) == contexts_hash(same)


def test_what_fits_stays_in_memory(tmp_path: Path) -> None:
    path, signature = npz(tmp_path), source_in(tmp_path).signature
    n_bytes = n_held_bytes(load_contexts(path, SPEC, signature))
    room = n_bytes + SERIES.nbytes
    assert n_mapped_bytes(load_contexts(path, SPEC, signature, most_bytes=room)) == 0
    assert n_mapped_bytes(load_contexts(path, SPEC, signature, most_bytes=n_bytes - 1)) == n_bytes


def test_an_archive_never_passes_through_memory_as_a_whole(tmp_path: Path) -> None:
    signature = source_in(tmp_path).signature
    n = (64 << 20) // (4 * 16)
    np.savez(tmp_path / "c.npz", x=np.zeros((n, 16), np.float32))
    tracemalloc.start()
    contexts = load_contexts(tmp_path / "c.npz", SPEC, signature, most_bytes=1 << 20)
    contexts_hash(contexts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_mapped_bytes(contexts) == 64 << 20
    assert peak < 40 << 20  # two parts of 16 MB


def test_a_quarter_of_the_memory_allowed_is_for_contexts(tmp_path: Path) -> None:
    source, path = source_in(tmp_path), npz(tmp_path)
    options = DataOptions(rollout=SPEC, contexts=path)
    n_bytes = n_held_bytes(read_data(options, source, scoring_only=True).scoring)
    fits, not_so = ({"max_memory": 4 * (n_bytes + SERIES.nbytes) - less} for less in (0, 4))
    assert n_mapped_bytes(read_data(options, source, scoring_only=True, **fits).scoring) == 0
    assert n_mapped_bytes(read_data(options, source, scoring_only=True, **not_so).scoring) == n_bytes


@pytest.mark.parametrize("more", ["", "flip_invariant = true\n"])
@pytest.mark.parametrize("workers", [1, 2])
def test_scores_have_the_same_bits_wherever_the_contexts_lie(tmp_path: Path, more: str, workers: int) -> None:
    spec = parse_spec(REPLACE.format(steps=4).replace("[rollout]\n", f"[rollout]\n{more}"))
    source = source_in(tmp_path)
    memory = Contexts({"x": values(5, 16)}, {})
    filed = kept_within(memory, 0)
    assert is_mapped(filed.arrays["x"])
    options = ScoreOptions(workers=workers)
    here, there = (score(bed_of(source, spec, c, batch=2), source.sha256, options) for c in (memory, filed))
    assert there.to_json() == here.to_json()


def test_the_estimate_counts_what_memory_holds(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    memory = Contexts({"x": values(5, 16)}, {})
    filed = kept_within(memory, 0)
    exposed, n_bytes = exposable(source.lifted, source.survey.weights), 4 * 5 * 16
    # What was read, the state changed by one unit in the last place, and what stays on the device.
    assert memory_of(exposed, SPEC, memory).contexts == 3 * n_bytes
    assert memory_of(exposed, SPEC, filed).contexts == n_bytes
    mirrored = SPEC.model_copy(update={"rollout": SPEC.rollout.model_copy(update={"flip_invariant": True})})
    assert memory_of(exposed, mirrored, memory).contexts == 4 * n_bytes
    told = estimate(plan_sweep(bed_of(source, SPEC, filed), source.sha256, ScoreOptions()))
    assert (told.contexts_bytes, told.contexts_in_files_bytes) == (n_bytes, n_bytes)


def test_an_archive_beyond_the_memory_goes_to_files_unless_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = source_in(tmp_path).signature
    monkeypatch.setattr(archive, "free_bytes", lambda: 100)
    path = npz(tmp_path)
    with pytest.raises(InputError, match=r"but 100 are free\. Store"):
        load_contexts(path, SPEC, signature)
    assert n_held_bytes(load_contexts(path, SPEC, signature, most_bytes=1 << 30)) == 0
    with pytest.raises(InputError, match=r"but 100 are free\. Store"):
        load_contexts(npz(tmp_path, packed=True), SPEC, signature, most_bytes=1 << 30)


def test_an_archive_in_columns_beyond_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = source_in(tmp_path).signature
    n_bytes = 4 * 3 * 16
    np.savez(tmp_path / "c.npz", x=np.asfortranarray(values(3, 16)))
    monkeypatch.setattr(archive, "free_bytes", lambda: n_bytes)
    assert n_held_bytes(load_contexts(tmp_path / "c.npz", SPEC, signature, most_bytes=0)) == 0
    monkeypatch.setattr(archive, "free_bytes", lambda: n_bytes - 1)
    with pytest.raises(InputError, match=r"but 191 are free\. Store"):
        load_contexts(tmp_path / "c.npz", SPEC, signature, most_bytes=0)


def test_a_type_that_has_to_be_changed_is_changed_in_files(tmp_path: Path) -> None:
    signature = source_in(tmp_path).signature
    n = (64 << 20) // (8 * 16)
    wide = np.arange(n * 16, dtype=np.float64).reshape(n, 16) / 7
    np.savez(tmp_path / "c.npz", x=wide)
    tracemalloc.start()
    contexts = load_contexts(tmp_path / "c.npz", SPEC, signature, most_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert is_mapped(contexts.arrays["x"])
    assert np.array_equal(contexts.arrays["x"], wide.astype(np.float32))
    assert peak < 40 << 20


def test_integers_that_do_not_fit_are_found_in_files_too() -> None:
    port = Port("n", np.dtype(np.int32), ("b",))
    fits, not_so = (
        mapped([a], a.shape, a.dtype, "these") for a in (np.array([3, -4]), np.array([3, 1 << 40]))
    )
    assert cast(fits, port, "").tolist() == [3, -4]
    with pytest.raises(InputError, match="integers that do not fit int32"):
        cast(not_so, port, "")


def test_a_disk_without_room_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, signature = npz(tmp_path), source_in(tmp_path).signature
    usage = shelf.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(InputError, match="but 10 are free for temporary files") as caught:
        load_contexts(path, SPEC, signature, most_bytes=0)
    assert "TMPDIR" in caught.value.todo


def test_a_disk_that_fills_up_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"the contexts cannot be written to a temporary file \(No space"):
        kept_within(Contexts({"x": values(5, 16)}, {}), 0)


def test_a_damaged_member_is_one_line(tmp_path: Path) -> None:
    path, signature = npz(tmp_path), source_in(tmp_path).signature
    with zipfile.ZipFile(path) as members:
        start = members.getinfo("x.npy").header_offset
    raw = bytearray(path.read_bytes())
    raw[start + 200] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        load_contexts(path, SPEC, signature, most_bytes=0)


def test_arrays_of_one_shelf_come_back() -> None:
    held = Shelf("these")
    arrays = [values(2, 3), np.arange(5), np.zeros((0, 4)), np.array(7.0)]
    for place, array in [(held.put(a), a) for a in arrays]:
        assert np.array_equal(held.get(place), array)
    assert mapped(iter(()), (0, 4), np.dtype(np.float32), "none").shape == (0, 4)


def test_values_that_are_not_finite_are_found_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqs_onnx.rollout.contexts.context_set._BLOCK_VALUES", 4)
    array = values(5, 3)
    check_finite(array, "input 'x'", "")
    array[3, 1] = np.nan
    with pytest.raises(InputError, match=r"NaN in context 3 at position \[1\]"):
        check_finite(array, "input 'x'", "")


def test_every_nominal_rollout_keeps_to_the_memory_allowed(tmp_path: Path) -> None:
    source, contexts = source_in(tmp_path), Contexts({"x": values(3, 16)}, {})
    n_bytes = 3 * 4 * 16 * 4  # contexts × steps × values × float32
    for most, where in ((4 * n_bytes, "device"), (4 * n_bytes - 4, "file")):
        held = bed_of(source, SPEC, contexts, max_memory=most).hold()
        assert held.store.where == where, most
