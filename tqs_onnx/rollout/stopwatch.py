"""Times files against each other: load time, memory, and latency of one call, each file in a process of its own.

    parent ── "load" or a batch number ──▶ child of file 1 ──▶ seconds
           ── the same                 ──▶ child of file 2 ──▶ seconds      … and so on, round after round

A child opens its file with stock options, as a server does, and answers one line at a time. The rounds are interleaved,
so that a machine that slows down slows every file: compare figures of one race only. Memory is the increase over the
same process before it loads the file; where the system does not report it, it is missing.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.rollout.options import Provider, SessionOptions
from tqs_onnx.rollout.session import Session, Value, open_session
from tqs_passes.errors import InputError

#: A timed call is repeated until it takes about as long as this: the clock and the pipe are then negligible.
_LEAST_S = 0.005
#: Pause before each timed call: the runtime's threads in the other process spin for a while after a call.
_PAUSE_S = 0.002
_LOAD = "load"
#: Rounds at one batch size after which a race ends, however short they are.
MOST_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Laps:
    """The figures of one file; the same position in two files' lists is the same round.

    Parameters
    ----------
    load_s : tuple of float
        Wall-clock seconds of each load after the first.
    first_load_s : float
        Processor seconds of the first load.
    loaded_mb, resident_mb, peak_mb : float or None
        Increase in memory after loading, after one call at every batch size, and at most.
    wall_s, processor_s : dict of int to tuple of float
        Seconds of one call, by batch size.
    """

    load_s: tuple[float, ...]
    first_load_s: float
    loaded_mb: float | None
    resident_mb: float | None
    peak_mb: float | None
    wall_s: dict[int, tuple[float, ...]] = field(default_factory=dict[int, tuple[float, ...]])
    processor_s: dict[int, tuple[float, ...]] = field(default_factory=dict[int, tuple[float, ...]])


def race(
    files: Mapping[str, Path],
    feeds: Mapping[int, Mapping[str, NDArray[Any]]],
    *,
    provider: Provider = "cpu",
    threads: int = 0,
    device: int = 0,
    rounds: int = 9,
    least_s: float = 0.0,
    loads: int = 3,
) -> dict[str, Laps]:
    """Time files in interleaved rounds.

    Parameters
    ----------
    files : mapping of str to Path
        Models with the same inputs.
    feeds : mapping of int to mapping
        Inputs of one call, by batch size.
    provider : str
    threads : int
        0: the runtime's choice.
    device : int
        Number of the GPU.
    rounds, loads : int
        Number of timed calls at each batch size, at least, and of loads after the first.
    least_s : float
        Rounds go on until they have taken this many seconds at each batch size, up to `MOST_ROUNDS`: other users of the
        machine slow it down for a second or two at a time, which no number of short calls averages out.

    Raises
    ------
    InputError
        A file does not load or run.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tqs-race-"))
        stored = Path(folder) / "feeds.npz"
        np.savez(
            stored, allow_pickle=False, **{f"{b}/{n}": a for b, f in feeds.items() for n, a in f.items()}
        )
        children = {
            name: stack.enter_context(_Child(path, stored, provider, threads, device))
            for name, path in files.items()
        }
        load = {name: tuple[float, ...]() for name in files}
        for _ in range(loads):
            for name, child in children.items():
                load[name] += (child.ask(_LOAD)[0],)
        wall = {name: {b: tuple[float, ...]() for b in feeds} for name in files}
        used = {name: {b: tuple[float, ...]() for b in feeds} for name in files}
        for batch in feeds:
            once = max(child.ask(f"{batch} 1")[0] for child in children.values())
            repeats = max(1, min(100, round(_LEAST_S / max(once, 1e-6))))
            start, done = time.perf_counter(), 0
            while done < rounds or (done < MOST_ROUNDS and time.perf_counter() < start + least_s):
                done += 1
                for name, child in children.items():
                    seconds = child.ask(f"{batch} {repeats}")
                    wall[name][batch] += (seconds[0] / repeats,)
                    used[name][batch] += (seconds[1] / repeats,)
        return {
            name: Laps(load[name], **child.report, wall_s=wall[name], processor_s=used[name])
            for name, child in children.items()
        }


class _Child:
    """A process that holds one file."""

    def __init__(self, path: Path, feeds: Path, provider: Provider, threads: int, device: int) -> None:
        self._path = path
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", __name__, str(path.resolve()), str(feeds)),
                *(provider, str(threads), str(device)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.report: dict[str, Any] = {}

    def __enter__(self) -> _Child:
        """Wait until it has loaded its file and called it once."""
        try:
            self.report = self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(self, line: str) -> tuple[float, float]:
        """Return the wall-clock and processor seconds of what a line asks for."""
        assert self._process.stdin is not None
        time.sleep(_PAUSE_S)
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return tuple(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the runtime ended the process"}
        if "error" in found:
            raise InputError(f"cannot be timed: {found['error']}", where=str(self._path))
        return found


def processor() -> str:
    """Return the name of the CPU and the instruction sets that affect integer kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown CPU")
    flags = next((x for x in lines if x.startswith("flags")), "").split()
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
    return f"{name} ({', '.join(f for f in wanted if f in flags)})"


def _memory_mb(key: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def _increase(key: str, before: float | None) -> float | None:
    now = _memory_mb(key)
    return None if now is None or before is None else now - before


def _say(answer: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _timed(session: Session, feeds: Mapping[str, Value], repeats: int) -> tuple[float, float]:
    wall, used = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        session.run(feeds)
    return time.perf_counter() - wall, time.process_time() - used


def _answer(path: Path, stored: Path, provider: Provider, threads: int, device: int) -> None:
    """Load a file, report, and answer the lines of the parent."""
    options = SessionOptions(threads, device=device, stock=True)
    arrays = np.load(stored)
    before = _memory_mb("VmRSS")
    used = time.process_time()
    session = open_session(path, provider=provider, options=options)
    used = time.process_time() - used
    loaded = _increase("VmRSS", before)
    ports = {p.name: p.dtype for p in session.signature.inputs}
    feeds: dict[int, dict[str, Value]] = {}
    for key in arrays.files:
        batch, _, name = key.partition("/")
        array = arrays[key]
        if array.dtype.kind == "V":  # NumPy stores bfloat16 as bytes without a type
            array = array.view(ports[name])
        feeds.setdefault(int(batch), {})[name] = session.value(array)
    for inputs in feeds.values():
        session.run(inputs)
    resident, peak = _increase("VmRSS", before), _increase("VmHWM", before)
    report = {"first_load_s": used, "loaded_mb": loaded, "resident_mb": resident, "peak_mb": peak}
    _say(report)
    for line in sys.stdin:
        if line.strip() == _LOAD:
            wall, used = time.perf_counter(), time.process_time()
            open_session(path, provider=provider, options=options)
            seconds = time.perf_counter() - wall, time.process_time() - used
        else:
            batch, repeats = map(int, line.split())
            seconds = _timed(session, feeds[batch], repeats)
        _say({"seconds": seconds})


def main(arguments: Sequence[str]) -> None:
    """Run a child."""
    path, stored, provider, threads, device = arguments
    try:
        _answer(Path(path), Path(stored), provider, int(threads), int(device))  # type: ignore[arg-type]
    except InputError as error:
        _say({"error": error.what})


if __name__ == "__main__":
    main(sys.argv[1:])
