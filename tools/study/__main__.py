"""Runs the study of the paper's tables and claims: `python -m tools.study --runs FOLDER [--out models/zoo]`.

Every run is a command of tqs in a folder of its own below --runs; what is finished is not run again, so that the study
can be stopped at any time. It needs the data of the zoo (docs/data.md) and h5py, and takes about 20 minutes of CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.study.document import write
from tools.study.protocols import QUICK, STAGES, Size
from tools.study.quantile_heads import score_heads
from tools.study.runs import Runs

EVERY = (*STAGES, score_heads)


def main() -> None:
    """Read the command line, run what is missing, and write what the runs show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="Folder of the runs; what is there stays.")
    parser.add_argument("--out", type=Path, help="Folder for STUDY.md and study/*.csv; without, only run.")
    parser.add_argument(
        "--quick", action="store_true", help="Few contexts, tables and steps: does everything run?"
    )
    parser.add_argument(
        "--only", action="append", choices=[s.__name__ for s in EVERY], help="Only this stage."
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    runs, size = Runs(given.runs.resolve(), given.threads), QUICK if given.quick else Size()
    for stage in EVERY:
        if not given.only or stage.__name__ in given.only:
            stage(runs, size)
    if given.out is not None:
        for path in write(runs, size, given.out):
            print(path)


if __name__ == "__main__":
    main()
