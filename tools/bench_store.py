"""Measures the store of measurements: microseconds to write, look up and read one, with checksums and without.

Measurements have the sizes of a sweep of 8 contexts at 10 horizons over 4 variables. Both variants run in turn, on new
files; the figures are processor time, of the quickest round. A rollout takes milliseconds at least: what a checksum
adds to a sweep is the difference over that. Usage::

    python tools/bench_store.py [--rows 2000] [--rounds 9] [--folder FOLDER] [--before FILE]

`--before` compares with another version of `tqs_onnx/scoring/measure/store.py` instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np

from tqs_onnx.scoring.measure import store
from tqs_onnx.scoring.measure.meter import Measurement

CONTEXTS, HORIZONS, VARIABLES = 8, 10, 4
STEPS = ("write", "look up", "read")


def loaded(path: Path) -> ModuleType:
    """Return another version of the store as a module."""
    spec = importlib.util.spec_from_file_location("store_before", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def constant(*_: object) -> int:
    """Stand for the checksum."""
    return 0


def timed(module: ModuleType, rows: int, folder: Path) -> list[float]:
    """Return the microseconds of each step, a row."""
    rng = np.random.default_rng(0)
    keys = [f"{i:064x}" for i in range(rows)]
    found = [
        Measurement(rng.random((CONTEXTS, HORIZONS)), rng.random(VARIABLES), 1.0, HORIZONS)
        for _ in range(rows)
    ]
    expected = store.Expected(CONTEXTS, HORIZONS, VARIABLES, HORIZONS)
    times: list[float] = []

    def measure(work: Callable[[], None]) -> None:
        start = time.process_time()
        work()
        times.append((time.process_time() - start) / rows * 1e6)

    with tempfile.TemporaryDirectory(dir=folder) as name, module.Results(Path(name) / "s.sqlite") as results:

        def write() -> None:
            for key, m in zip(keys, found, strict=True):
                results.put("job", [(key, m)])

        def look_up() -> None:
            known = results.known(keys, expected) if module is store else results.known(keys)
            assert len(known) == rows

        def read() -> None:
            for key in keys:
                assert results.get(key) is not None

        for work in (write, look_up, read):
            measure(work)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the store of measurements.")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--before", type=Path)
    given = parser.parse_args()
    before = loaded(given.before) if given.before else None
    with_sums: list[list[float]] = []
    without: list[list[float]] = []
    for _ in range(given.rounds):
        with_sums.append(timed(store, given.rows, given.folder))
        if before is not None:
            without.append(timed(before, given.rows, given.folder))
            continue
        with mock.patch.object(store, "_checksum", new=constant):
            without.append(timed(store, given.rows, given.folder))
    print("| a measurement | µs with checksums | µs without | ratio |")
    print("|---|---|---|---|")
    sums = [0.0, 0.0]
    for i, step in enumerate(STEPS):
        a, b = (min(row[i] for row in rows) for rows in (with_sums, without))
        sums = [sums[0] + a, sums[1] + b]
        print(f"| {step} | {a:.1f} | {b:.1f} | {a / b:.3f} |")
    print(f"| all | {sums[0]:.1f} | {sums[1]:.1f} | {sums[0] / sums[1]:.3f} |")


if __name__ == "__main__":
    main()
