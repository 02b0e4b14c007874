"""Turns a manifest back into its job: the same inputs and options give the same bytes again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tqs_onnx.allocation.times import TIMES_NAME
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.build import Declared
from tqs_onnx.jobs.options import QuantizeOptions, options_from
from tqs_onnx.jobs.release import input_digests
from tqs_onnx.rollout.made.request import InputScale, made_request
from tqs_onnx.scoring.score import Progress
from tqs_onnx.verification.manifest import Manifest, read_manifest
from tqs_passes.errors import InputError
from tqs_passes.files.model import sha256_of_file

_TIMES = "times"
_ROLES = ("rollout", "contexts", "evaluation", "calibration")


def declared_by(file: Path, out: Path | None, progress: Progress | None = None) -> Declared:
    """Return the build that reproduces the file a manifest describes.

    Parameters
    ----------
    file : Path
        manifest.json of a quantize job or of a build; input paths are resolved relative to it.
    out : Path or None
        Run directory; it must differ from the manifest's own.
    progress : callable, optional
        See `score`.

    Raises
    ------
    InputError
        It is not the manifest of such a job, `out` is missing or the manifest's own folder, or an input is missing or
        has changed.
    """
    manifest = read_manifest(file)
    folder = file.resolve().parent
    settings = manifest.settings
    if settings.get("command") != "quantize":
        raise InputError(
            "is not the manifest of a quantize job",
            where=str(file),
            todo="Give one that `tqs quantize` or `tqs build` wrote",
        )
    if out is None or out.resolve() == folder:
        raise InputError(
            "the rebuild would overwrite the run it reproduces", where=str(file), todo="Give another `out`"
        )
    if settings["in_memory"]:
        raise InputError(
            f"its {' and '.join(settings['in_memory'])} were given in memory, not as files",
            where=str(file),
            todo="Save them to files and run tqs quantize again",
        )
    model, data = folder / settings["model"], _data(settings["data"], folder)
    _require_unchanged(manifest, model, data)
    options = options_from(settings["options"], QuantizeOptions)
    if _TIMES in manifest.inputs:
        _take_times(manifest, folder / TIMES_NAME, out)
    name = next(iter(manifest.output))
    return Declared(model, out, out / name, data, options, progress=progress)


def _data(settings: dict[str, Any], folder: Path) -> DataOptions:
    given = {role: settings[role] for role in _ROLES if role in settings}
    paths = {role: folder / text for role, text in given.items() if made_request(text) is None}
    scales = tuple(InputScale(**scale) for scale in settings.get("input_scale", ()))
    found: dict[str, Any] = {**settings, **paths, "input_scale": scales}
    return DataOptions(**found)


def _take_times(manifest: Manifest, times: Path, out: Path) -> None:
    """Copy the table of times that a plan was made from into the new run, because another measurement would differ."""
    if not times.is_file() or {times.name: sha256_of_file(times)} != manifest.inputs[_TIMES]:
        raise InputError(
            "is missing, or differs from that in the manifest",
            where=str(times),
            todo="Restore the file, or run tqs quantize again",
        )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(times, out / TIMES_NAME)


def _require_unchanged(manifest: Manifest, model: Path, data: DataOptions) -> None:
    files = data.read_files
    for role, digests in input_digests(model, files, {}).items():
        if manifest.inputs.get(role) != digests:
            raise InputError(
                f"the content of {role} differs from that in the manifest",
                where=str(model if role == "model" else files[role]),
                todo="Restore the file, or run tqs quantize again",
            )
