"""Look inside built distributions: every file of the packages must be there, data and type marks included."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Where each package lies in the sources, and so in an sdist; in a wheel they lie side by side.
PACKAGES = {
    "tqs_onnx": Path("tqs_onnx"),
    "tqs_passes": Path("passes/tqs_passes"),
    "tqs_models": Path("models/tqs_models"),
}
SUFFIXES = {".py", ".typed", ".onnx", ".toml", ".npz", ".md"}


def expected(*, wheel: bool) -> set[str]:
    """Return the names of the files that a distribution must hold."""
    return {
        (Path(package) / file.relative_to(ROOT / folder) if wheel else file.relative_to(ROOT)).as_posix()
        for package, folder in PACKAGES.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in SUFFIXES
    }


def held(distribution: Path) -> set[str]:
    """Return the names of the files in a wheel or an sdist, without the sdist's own folder."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as wheel:
            return set(wheel.namelist())
    with tarfile.open(distribution) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def main(distributions: list[str]) -> int:
    """Print what is missing; return 1 if anything is."""
    if not distributions:
        print("no distribution was given", file=sys.stderr)
        return 1
    missing = [
        f"{Path(name).name} lacks {file}"
        for name in distributions
        for file in sorted(expected(wheel=name.endswith(".whl")) - held(Path(name)))
    ]
    print(*missing, sep="\n", end="\n" if missing else "", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
