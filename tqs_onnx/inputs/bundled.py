"""Finds models offered through the entry-point group `tqs.models`; this package never imports them directly."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from tqs_passes.errors import InputError

GROUP = "tqs.models"
DEMO = "lorenz96"


class BundledFiles(Protocol):
    """Files of a bundled model."""

    @property
    def model(self) -> Path:
        """The `.onnx` file."""
        ...

    @property
    def rollout(self) -> Path:
        """Its rollout spec."""
        ...

    @property
    def contexts(self) -> Path:
        """Scoring contexts."""
        ...

    @property
    def evaluation(self) -> Path:
        """Evaluation contexts, with truth."""
        ...


def demo_files() -> BundledFiles:
    """Return the files of the demo model.

    Raises
    ------
    InputError
        The package was installed without its models.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == DEMO:
            files: BundledFiles = entry.load()()
            return files
    raise InputError(
        "the demo model is not installed",
        todo="Reinstall the package: pip install tqs-onnx",
    )
