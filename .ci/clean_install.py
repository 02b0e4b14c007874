"""Install built distributions into empty environments, and do there what a user does first.

    python .ci/clean_install.py [--python 3.11 3.12 3.13] [--constraint FILE] DISTRIBUTION…

Every distribution goes into an environment of its own for every version of Python. Interpreters are looked for on PATH,
among pyenv's, and by uv. The exit code is 1 if something fails, or if an interpreter is not found, which is said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
MODEL = "from tqs_models.lorenz96 import files; print(files().model)"


def interpreter(version: str) -> Path | None:
    """Return an interpreter of a version of Python, or None."""
    if version == OWN:
        return Path(sys.executable)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = sorted(versions.glob(f"{version}.*/bin/python{version}"))
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True, check=False)
        places += [Path(found.stdout.strip())] if found.returncode == 0 else []
    on_path = shutil.which(f"python{version}")
    places += [Path(on_path)] if on_path else []
    works = (
        p for p in places if subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode == 0
    )
    return next(works, None)


def use(python: Path, distribution: Path, constraint: Path | None, folder: Path) -> None:
    """Install a distribution into a new environment, and use it where the sources are not.

    Raises
    ------
    subprocess.CalledProcessError
        A command fails; its `stderr` says why.
    """
    made = folder / "env" / "bin"
    pins = ["-c", str(constraint)] if constraint else []

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run(python, "-m", "venv", folder / "env")
    run(made / "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check", *pins, distribution)
    run(made / "tqs", "--help")
    run(made / "tqs", "doctor")
    run(made / "tqs", "inspect", run(made / "python", "-c", MODEL))
    run(made / "python", "-W", "error", "-c", "import tqs_onnx as tqs")


def main(arguments: list[str]) -> int:
    """Print what became of every distribution and interpreter; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Install distributions into empty environments and use them."
    )
    parser.add_argument("--python", nargs="+", default=[OWN], metavar="VERSION")
    parser.add_argument("--constraint", type=Path)
    parser.add_argument("distributions", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    failed = 0
    for version in given.python:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: no interpreter found")
            failed += 1
            continue
        for distribution in given.distributions:
            with tempfile.TemporaryDirectory(prefix="tqs-clean-") as folder:
                pins = given.constraint.absolute() if given.constraint else None
                try:
                    use(python, distribution.absolute(), pins, Path(folder))
                except subprocess.CalledProcessError as error:
                    said = f"{error.cmd[0]} ends with {error.returncode}: {error.stderr.strip()[-1500:]}"
                    print(f"Python {version}, {distribution.name}: {said}")
                    failed += 1
                else:
                    print(f"Python {version}, {distribution.name}: installed and used", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
