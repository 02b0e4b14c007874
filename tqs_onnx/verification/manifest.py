"""The manifest beside an emitted file: its inputs, its settings, and the measurements."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tqs_onnx.rollout.gpu import gpu_versions
from tqs_onnx.rollout.options import Provider
from tqs_onnx.verification.verify import Verification
from tqs_onnx.version import VERSION
from tqs_passes.errors import InputError
from tqs_passes.files.text import LARGE, read_text
from tqs_passes.plan.plan import Tried

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "ortools")


class GateResult(BaseModel):
    """One gate: its text, the measured value, whether it holds, and whether made contexts decided that."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    gate: str
    value: float
    passed: bool
    on_made_contexts: bool = False

    @property
    def title(self) -> str:
        """Its text, and on which contexts it was checked if nobody measured them."""
        return f"{self.gate} on made contexts" if self.on_made_contexts else self.gate


class Manifest(BaseModel):
    """The file `manifest.json`.

    Attributes
    ----------
    version : int
    inputs : dict of str to dict of str to str
        File names and their SHA-256, by role (model, rollout, contexts …).
    output : dict of str to str
        Emitted file names and their SHA-256.
    versions : dict of str to str
        Versions of Python, this package, and the libraries that affect results.
    settings : dict
        The options of the job.
    provider : str
        Execution provider of the verification; for `auto`, the provider it selected on that machine.
    profile : str
    licence : str or None
        Licence of the source model, if its metadata or card states one.
    plan_sha256 : str
    unseen : dict of str to str
        Weights of which no scoring context ran every part, kept at 8 bits or more: what was not run, by label.
    tried : tuple of Tried
        The plans that the file's plan was chosen from, by their drift on held-out contexts.
    verification : Verification
    gates : tuple of GateResult
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    version: Literal[2] = 2
    inputs: dict[str, dict[str, str]]
    output: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    provider: str
    profile: str
    licence: str | None
    plan_sha256: str
    unseen: dict[str, str] = {}
    tried: tuple[Tried, ...] = ()
    verification: Verification
    gates: tuple[GateResult, ...] = ()

    def to_json(self) -> str:
        """Return the manifest as JSON, two-space indented, keys in schema order, newline at the end."""
        return self.model_dump_json(indent=2) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json`.

    Raises
    ------
    InputError
        The file cannot be read, or is not a manifest of this version.
    """
    try:
        return Manifest.model_validate_json(read_text(path, LARGE))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(
            "is not a manifest of this version", where=str(path), todo="Run tqs verify again"
        ) from error


def versions(provider: Provider = "cpu") -> dict[str, str]:
    """Return the versions of everything that affects results on this machine; for a GPU, also its libraries."""
    found = {"python": platform.python_version(), "tqs-onnx": VERSION, "platform": sys.platform}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found if provider == "cpu" else found | gpu_versions()


def licence_of(metadata: dict[str, str]) -> str | None:
    """Return the licence stated in a model's metadata, or None."""
    for key, value in metadata.items():
        if key.lower().rpartition(".")[2] in ("license", "licence"):
            return value
    return None
