"""Logs a run directory to MLflow through its own client, if that is installed: settings, figures and files.

The tracking server is the one that MLflow is set to (``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqs_onnx.report.run import Run
from tqs_onnx.verification.manifest import Manifest
from tqs_passes.errors import InputError

#: MLflow refuses longer values of parameters.
_LONGEST = 500
_FILES = ("manifest.json", "plan.json", "scores.json", "pareto.json")


def log_to_mlflow(run: Run, written: Sequence[Path]) -> str:
    """Log a verified run and the files of its report; return the id of the MLflow run.

    Parameters
    ----------
    run : Run
    written : sequence of Path
        The page and the card.

    Raises
    ------
    InputError
        MLflow is not installed, the run was not verified, or the tracking server refuses.
    """
    if run.manifest is None:
        raise InputError("holds no manifest.json", where=str(run.folder), todo="Log a run that tqs verified")
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError as error:
        raise InputError("MLflow is not installed", todo="pip install mlflow-skinny") from error
    try:
        with mlflow.start_run(run_name=run.name) as begun:
            mlflow.log_params(parameters(run.manifest))
            mlflow.log_metrics(metrics(run.manifest))
            for step, drift in enumerate(run.manifest.verification.drift.per_step, 1):
                mlflow.log_metric("drift_by_step", drift, step=step)
            for path in (*(run.folder / name for name in _FILES), *written):
                if path.is_file():
                    mlflow.log_artifact(str(path))
            return str(begun.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"MLflow refuses: {first}", todo="Check MLFLOW_TRACKING_URI") from error


def parameters(manifest: Manifest) -> dict[str, str]:
    """Return the settings of a run, nested keys joined by dots, without those that are not set."""
    return dict(_flat(manifest.settings.get("options", manifest.settings), ""))


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401  (JSON)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif value not in (None, [], ()):
        yield prefix, str(value)[:_LONGEST]


def metrics(manifest: Manifest) -> dict[str, float]:
    """Return the figures of a run: size, drift, errors by variable, and times where they were measured."""
    v = manifest.verification
    found = {
        "bytes": float(v.bytes_out),
        "compression": v.compression,
        "weight_compression": v.weight_compression,
        "drift": v.drift.total,
        "drift_p95": v.drift.p95,
    }
    for name, e in v.errors.items():
        found[f"drift/{_key(name)}"] = v.drift.per_variable[name]
        if e.file is not None and e.degradation is not None:
            found |= {f"mae/{_key(name)}": e.file.mae, f"degradation/{_key(name)}": e.degradation}
    known = [e.degradation for e in v.errors.values() if e.degradation is not None]
    if known:
        found["worst_degradation"] = max(known)
    if v.timing is not None:
        found |= {f"latency.batch{batch}": ratio for batch, ratio in v.timing.latency.items()}
    return found


def _key(name: str) -> str:
    """Return a name of the characters that MLflow takes."""
    return re.sub(r"[^\w .-]", "_", name) or "_"
