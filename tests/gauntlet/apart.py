"""Runs a harness of the gauntlet in a process of its own, because it forks or mounts, and reads what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def found_apart(harness: str, *words: str, under: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what `python -m tests.gauntlet.HARNESS WORDS…` prints as JSON; `under` is the command that starts it."""
    done = subprocess.run(
        [*under, sys.executable, "-m", f"tests.gauntlet.{harness}", *words],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
