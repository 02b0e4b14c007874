"""Attacks on what commands read besides a model: run directories, scaler files, fields, drafts, odd files, options."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
import tomllib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx

from tests.cli.test_fuzz import HOSTILE, MUTATIONS, flipped
from tests.gauntlet.attacks import BadError, Outcome, command, finished_run
from tests.inputs.test_windows import LOAD, network, written
from tests.rollout.test_field_files import grid, hourly, loaded, saved
from tests.rollouts import forecaster, write_case
from tqs_onnx.inputs.data import DataOptions, read_spec
from tqs_onnx.inputs.source import open_source
from tqs_passes.errors import TqsError

Array = np.ndarray[Any, Any]
#: What a value of a document is replaced by.
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, -(2**63), 10**400, 1e308, -0.5, 5e-324, float("nan"), float("inf")),
    *(
        "",
        "null",
        "../../x",
        "<script>alert(1)</script>",
        "</script><b>",
        "a\nb\x1b[31m",
        "\ud800",
        "9" * 9999,
    ),
    *([], {}, [[]], [None], {"a": {}}, [1] * 999, "int8", "FP32", ["W1"] * 2),
)
#: No attack waits for anything, so that one which takes this long hangs.
_PATIENCE_S = 60


@contextmanager
def _patience() -> Generator[None]:
    def hangs(number: int, frame: FrameType | None) -> None:
        raise BadError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def changed(document: object, rng: random.Random) -> object:
    """Return a JSON document with one value replaced, one key renamed, or one entry lost or doubled."""
    if not isinstance(document, dict | list) or not document or rng.random() < 0.12:
        return rng.choice(_VALUES)
    if isinstance(document, list):
        at, kind = rng.randrange(len(document)), rng.random()
        if kind < 0.1:
            return document[:at] + document[at + 1 :]
        if kind < 0.2:
            return [*document, document[at]]
        return [*document[:at], changed(document[at], rng), *document[at + 1 :]]
    key, kind = rng.choice(sorted(document)), rng.random()
    if kind < 0.06:
        return {k: v for k, v in document.items() if k != key}
    if kind < 0.12:
        return {rng.choice(HOSTILE) if k == key else k: v for k, v in document.items()}
    return document | {key: changed(document[key], rng)}


def _array(array: Array, rng: random.Random) -> Array | None:
    """Return an array of another shape, type or content in the place of one; None: it is gone."""
    return rng.choice([
        lambda: None, lambda: array[..., :0], lambda: array[:-1] if array.ndim else array, lambda: array[None],
        lambda: np.zeros(0), lambda: np.full_like(array, -1) if array.dtype.kind in "if" else array,
        lambda: np.full(array.shape, np.nan), lambda: array.astype(str), lambda: np.array(["a", "b"]),
        lambda: np.full(array.shape, 1j), lambda: np.full(array.shape, 2**60), lambda: np.array([1, None], object),
        lambda: np.concatenate([array.ravel(), array.ravel()]), lambda: array.ravel()[::-1].reshape(array.shape),
    ])()  # fmt: skip


def _reads(folder: Path, rng: random.Random) -> list[str]:
    """Return a command that reads a run directory."""
    run, model = folder / "run", finished_run() / "in" / "m.onnx"
    return rng.choice([
        ["report", str(run), "--out", str(folder / "page.html")],
        ["report", str(run), "--format", "csv", "--out", str(folder / "tables")],
        ["analyse", str(run)], ["analyse", str(run), "--json"],
        ["diff", str(model), str(run / "m.tqs.onnx")],
        ["build", str(run / "manifest.json"), "--out", str(folder / "again")],
        ["emit", str(model), "--plan", str(run / "plan.json"), "--out", str(folder / "o.onnx")],
        ["allocate", str(model), "--scores", str(run / "scores.json"), "--compression", "1.5", "--out",
         str(folder / "p.json")],
    ])  # fmt: skip


def runs(folder: Path, rng: random.Random) -> Outcome:
    """Report, analyse, compare or build again a run with a damaged file; no markup of a name reaches the page."""
    shutil.copytree(finished_run() / "run", folder / "run")
    documents = sorted(p for p in (folder / "run").iterdir() if p.suffix in (".json", ".npz", ".onnx"))
    damaged = rng.choice(documents)
    if damaged.suffix == ".json" and rng.random() < 0.85:
        found = json.loads(damaged.read_text())
        for _ in range(rng.randint(1, 3)):
            found = changed(found, rng)
        damaged.write_text(json.dumps(found))
    elif damaged.suffix == ".npz" and rng.random() < 0.6:
        with np.load(damaged) as stored:
            arrays = dict(stored)
        key = rng.choice(sorted(arrays))
        arrays[key] = _array(arrays[key], rng)
        np.savez(damaged, **{k: v for k, v in arrays.items() if v is not None})
    else:
        damaged.write_bytes(flipped(rng, damaged.read_bytes()))
    with _patience():
        outcome = command(*_reads(folder, rng))
    page = folder / "page.html"
    if page.exists() and "<script>alert(1)" in page.read_text():
        raise BadError("a name is markup in the page")
    return outcome


def odd_files(folder: Path, rng: random.Random) -> Outcome:
    """Put a folder, a link to nowhere, to itself or to a device, or nothing where a run has a file."""
    shutil.copytree(finished_run() / "run", folder / "run")
    names = [p.name for p in (folder / "run").iterdir() if p.is_file()]
    path = (
        folder / "run" / rng.choice([*names, ".unfinished", ".tqs", "sweep.sqlite-wal", "sweep.sqlite-shm"])
    )
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    rng.choice([
        path.mkdir, lambda: path.symlink_to(path.name), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/full"), lambda: path.symlink_to(folder / "nowhere"),
        lambda: path.write_bytes(b""), lambda: path.symlink_to("/proc/self/mem"),
    ])()  # fmt: skip
    case = finished_run() / "in"
    again = ["quantize", str(case / "m.onnx"), "--rollout", str(case / "rollout.toml"), "--contexts",
             str(case / "contexts.npz"), "--compression", "1.5", "--response-bits", "none", "--providers", "cpu",
             "--threads", "1", "--out", str(folder / "run"), "--force"]  # fmt: skip
    with _patience():
        outcome = command(*(again if rng.random() < 0.4 else _reads(folder, rng)))
    if (folder / "nowhere").exists():
        raise BadError("a file was written through a link")
    if path.name == ".tqs" and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # it is ours, and no temporary file of the command
    return outcome


def scalers(folder: Path, rng: random.Random) -> Outcome:
    """Read a damaged file of a scaler, beside the table that it scales."""
    table = written(folder)
    proto, _ = network((6, 3), (1,))
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    held: dict[str, Any] = rng.choice([
        {"mean_": [1.0, 2.0, 3.0], "scale_": [1.0, 0.5, 2.0]},
        {"data_min_": [0.0, 0.0, 0.0], "data_max_": [1.0, 2.0, 3.0], "feature_range": [0, 1]},
        {"min_": [0.0, 0.1, 0.2], "scale_": [1.0, 2.0, 3.0], "feature_names_in_": ["load", "temp", "rain"]},
    ])  # fmt: skip
    if rng.random() < 0.6:
        name = "s.json"
        (folder / name).write_text(json.dumps(changed(held, rng)))
    else:
        name = "s.npz"
        arrays = {key: np.asarray(value) for key, value in held.items()}
        key = rng.choice(sorted(arrays))
        arrays[key] = _array(arrays[key], rng)
        np.savez(folder / name, **{k: v for k, v in arrays.items() if v is not None})
        if rng.random() < 0.3:
            (folder / name).write_bytes(flipped(rng, (folder / name).read_bytes()))
    (folder / "r.toml").write_text(f'{LOAD}scaler = {{ file = "{name}" }}\n')
    with _patience():
        return command(
            *(
                "quantize",
                str(folder / "m.onnx"),
                "--rollout",
                str(folder / "r.toml"),
                "--contexts",
                str(table),
            ),
            *("--compression", "999", "--out", str(folder / "run")),
        )


def _fields_file(folder: Path, rng: random.Random) -> Path:
    kind = rng.choice(["nc4", "nc3", "zarr"])
    if kind == "nc4":
        return saved(folder / "a.nc", grid(time=hourly()))
    if kind == "nc3":
        return saved(folder / "a.nc", grid(time=hourly()), "scipy", format="NETCDF3_CLASSIC")
    grid(time=hourly()).to_zarr(folder / "a.zarr", zarr_format=2, consolidated=True)
    return folder / "a.zarr"


def fields(folder: Path, rng: random.Random) -> Outcome:
    """Read NetCDF and Zarr with flipped, lost or doubled bytes."""
    path = _fields_file(folder, rng)
    victim = path if path.is_file() else rng.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    raw = victim.read_bytes()
    if victim.name.startswith(".z") and rng.random() < 0.7:
        victim.write_text(json.dumps(changed(json.loads(raw), rng)))
    else:
        at = rng.randrange(len(raw))
        victim.write_bytes(
            rng.choice(
                [
                    flipped(rng, raw),
                    flipped(rng, raw[:4000]) + raw[4000:],
                    raw[:at],
                    raw[:at] + raw[at // 2 :],
                ]
            )
        )
    return _read_apart(path)


def _read_apart(path: Path) -> Outcome:
    """Read fields in a fork: HDF5 may loop or crash in C, where nothing of Python ends it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(_PATIENCE_S)  # its default action ends the process
            loaded(path)
            code = 0
        except TqsError as error:
            code = 2 if str(error).isprintable() else 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, 2):
        raise BadError("it hangs in C" if code == -signal.SIGALRM else f"it ends with {code}")
    return "done" if code == 0 else "refused"


def drafts(folder: Path, rng: random.Random) -> Outcome:
    """Draft the rollout of a model with hostile names; what is written is TOML that the model's own command reads."""
    proto = forecaster(6, 8)
    taken = {"x": rng.choice(HOSTILE), "y": rng.choice(HOSTILE)}
    if rng.random() < 0.5:
        taken[rng.choice(["x", "y"])] = "".join(
            rng.choices(string.printable + "é\u2028\"\\'#[]=\t", k=rng.randint(1, 30))
        )
    for node in proto.graph.node:
        node.input[:] = [taken.get(name, name) for name in node.input]
        node.output[:] = [taken.get(name, name) for name in node.output]
    proto.graph.input[0].name, proto.graph.output[0].name = taken["x"], taken["y"]
    model, spec = folder / "m.onnx", folder / "rollout.toml"
    onnx.save(proto, model)
    outcome = command("inspect", str(model), "--write-rollout", str(spec))
    if spec.exists():
        tomllib.loads(spec.read_text(encoding="utf-8"))
        read_spec(DataOptions(rollout=spec), open_source(model))
    return outcome


def emitted(folder: Path, rng: random.Random) -> Outcome:
    """Say what changed in a mutated emitted file, against its source."""
    file = folder / "m.tqs.onnx"
    data = (finished_run() / "run" / "m.tqs.onnx").read_bytes()
    try:
        file.write_bytes(rng.choice(MUTATIONS)(rng, data))
    except (ValueError, IndexError):  # the mutation is not a protobuf
        file.write_bytes(flipped(rng, data))
    case = finished_run() / "in" / "m.onnx"
    with _patience():
        return command(
            "diff", *rng.choice([(str(case), str(file)), (str(file), str(case)), (str(file), str(file))])
        )


_NUMBERS = (
    "-1",
    "0",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "1e-320",
    "9" * 400,
    "",
    "x",
    "1,2",
    "0x10",
    "½",
    "1_0",
    "٣",
)
#: Options with a number or a list, by the command that is given them.
_OPTIONS = (
    *(
        "--compression",
        "--weight-compression",
        "--steps",
        "--batch",
        "--max-contexts",
        "--max-memory",
        "--seed",
    ),
    *(
        "--tiers",
        "--probe-bits",
        "--draws",
        "--horizons",
        "--max-drift",
        "--gamma-min",
        "--p-fp32",
        "--blocks",
    ),
    *("--response-bits", "--threads", "--providers", "--target", "--opset", "--compute-blocks", "--out"),
)


def options(folder: Path, rng: random.Random) -> Outcome:
    """Give a command numbers and words that nobody means; a budget that cannot be met ends it before any rollout."""
    case = write_case(folder / "in", forecaster(6, 8), n=1, steps=2)
    words = ["quantize", str(case.model), *case.arguments("--out", str(folder / "r"), "--compression", "999")]
    for _ in range(rng.randint(1, 2)):
        words += [
            rng.choice(_OPTIONS),
            rng.choice([*_NUMBERS, *(name for name in HOSTILE if "\0" not in name)]),
        ]
    before = Path.cwd()
    os.chdir(folder)  # an output may be named relative to here
    try:
        with _patience():
            return command(*words)
    finally:
        os.chdir(before)


KINDS: dict[str, tuple[Callable[[Path, random.Random], Outcome], float]] = {
    "run directories": (runs, 0.08),
    "odd files": (odd_files, 0.03),
    "scalers": (scalers, 0.04),
    "fields": (fields, 0.05),
    "drafts": (drafts, 0.03),
    "emitted files": (emitted, 0.03),
    "options": (options, 0.04),
}
