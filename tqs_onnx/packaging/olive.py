"""Write the files that Microsoft Olive needs to run this package as one of its passes.

Olive finds passes through a package configuration: a JSON file given as `--package-config`, which names the module of
each pass and what it supports. `olive run --config olive_run.json --package-config olive_package.json` then finds
`TqsQuantization` of `tqs_onnx.jobs.olive_pass`.
"""

from __future__ import annotations

import json
from pathlib import Path

from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text

PASS = "TqsQuantization"
RUN = "olive_run.json"
MODULE = f"tqs_onnx.jobs.olive_pass.{PASS}"


def package_config() -> dict[str, object]:
    """Return the package configuration."""
    return {
        "passes": {
            PASS: {
                "module_path": MODULE,
                "supported_providers": ["CPUExecutionProvider", "CUDAExecutionProvider"],
                "supported_accelerators": ["cpu", "gpu"],
                "supported_precisions": ["*"],
                "supported_algorithms": [],
                "supported_quantization_encodings": ["qdq"],
                "dataset": "dataset_not_required",
            }
        },
        "extra_dependencies": {},
    }


def run_config(model: Path) -> dict[str, object]:
    """Return an example of a run configuration: the model to quantize, its rollout spec and its contexts."""
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "passes": {
            "tqs": {
                "type": PASS,
                "rollout": "rollout.toml",
                "contexts": "contexts.npz",
                "eval_contexts": "eval.npz",
                "compression": 8.0,
                "profile": "fast",
                "gates": [],
            }
        },
        "output_dir": "olive_out",
    }


def write_olive(model: Path, out: Path) -> tuple[str, ...]:
    """Write the package configuration and an example run into a folder; return the names of the files.

    Raises
    ------
    InputError
        The model does not exist, or the folder cannot be written to.
    """
    if not model.is_file():
        raise InputError("no such file", where=str(model), todo="Give the path of an .onnx file")
    files = {"olive_package.json": package_config(), RUN: run_config(model)}
    for name, document in files.items():
        write_text(out / name, json.dumps(document, indent=2) + "\n")
    return tuple(files)
