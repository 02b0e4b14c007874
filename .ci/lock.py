"""Pin what the checks run with: every package that `.[dev]` and the build bring, at the release that is newest today.

    python .ci/lock.py            write constraints.txt, by what pip would install into an empty environment
    python .ci/lock.py --check    compare this environment with it; exit code 1 if they differ

Run it with the oldest Python that is supported: what it can install, the newer ones can. Pins are versions, not hashes:
a release has other files on other platforms.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / ".ci" / "constraints.txt"
#: Packages that are not pinned: this one, and those that `venv` puts into an environment at its own versions.
OURSELVES, OF_VENV = "tqs-onnx", {"pip", "setuptools"}
HEAD = "# What .ci/run installs, made by: python .ci/lock.py\n"


def canonical(name: str) -> str:
    """Return the name of a package as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolved() -> dict[str, str]:
    """Return the version of every package that pip would install."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        dry = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", "install", *dry, f"{ROOT}[dev]", *build], check=True)
        found = json.loads(report.read_text())["install"]
    return {canonical(f["metadata"]["name"]): f["metadata"]["version"] for f in found}


def pinned() -> dict[str, str]:
    """Return the versions of `constraints.txt`."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def differences() -> list[str]:
    """Return where this environment differs from the pins: other versions, and packages that have none."""
    pins = pinned()
    installed = {canonical(d.metadata["Name"]): d.version for d in metadata.distributions()}
    return [
        f"{name} is {version}, the pin is {pins.get(name, 'missing')}"
        for name, version in sorted(installed.items())
        if name not in {OURSELVES, *OF_VENV} and pins.get(name) != version
    ]


def main() -> int:
    """Write the pins, or compare with them; return the exit code."""
    parser = argparse.ArgumentParser(description="Pin what the checks run with.")
    parser.add_argument("--check", action="store_true", help="compare this environment with the pins")
    if parser.parse_args().check:
        found = differences()
        print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
        return 1 if found else 0
    pins = {name: version for name, version in resolved().items() if name != OURSELVES}
    LOCK.write_text(HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))
    print(f"{LOCK.relative_to(ROOT)}: {len(pins)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
