# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="misc, no-any-return, import-not-found, import-untyped, no-untyped-call"
"""Write TimesFM-2.5 as model.onnx, with its rollout spec and random contexts. Needs the [export] extra and timesfm."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tqs_models.checkpoint import load_weights
from tqs_models.lean import fold_all_but, merge_constants, name_by_content, strip
from tqs_models.timesfm import LICENCE, PATCH, rollout
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model

CONTEXT = 512


def write_timesfm(
    folder: Path,
    checkpoint: Path | None,
    geometry: object,
    seed: int,
    contexts: int,
    settings: Mapping[str, str],
) -> tuple[Path, ...]:
    """Write the exported network into `folder`.

    Parameters
    ----------
    folder : Path
        Must exist.
    checkpoint : Path or None
        The package's `model.safetensors`; None: random weights.
    geometry : object
        Must be None: the model has no grid and no levels.
    seed : int
        Seed of random weights and contexts.
    contexts : int
        Number of random series of 512 values written to contexts.npz, and of others to eval.npz; 0: none.
    settings : mapping of str to str
        `layers`: keep only this many (random weights only).

    Returns
    -------
    tuple of Path
        The files written, the model first.

    Raises
    ------
    InputError
        torch or timesfm is missing, a setting is unknown, the checkpoint does not fit, or a weight lost its name.
    """
    unknown = sorted(set(settings) - {"layers"})
    if geometry is not None or unknown:
        raise InputError(
            "timesfm has no grid, no levels, and only the setting layers",
            todo="Give `settings` layers=N at most",
        )
    layers = int(settings["layers"]) if "layers" in settings else None
    if layers is not None and checkpoint is not None:
        raise InputError(
            "layers can be set for random weights only", where=str(checkpoint), todo="Leave out `settings`"
        )
    try:
        from tqs_models.timesfm.network import Forecast, random_network
    except ImportError as error:
        raise InputError(f"cannot import {error.name}", todo="pip install 'tqs-onnx[export]'") from error
    network = random_network(seed, layers)
    if checkpoint is not None:
        load_weights(network.load_checkpoint, checkpoint, "the model.safetensors of TimesFM-2.5 200M")
    model = exported(Forecast(network.cpu().eval()), seed)
    licence = LICENCE if checkpoint is not None else f"{LICENCE} (random weights)"
    model.metadata_props.add(key="license", value=licence)
    written = [folder / "model.onnx", folder / "rollout.toml"]
    save_model(Model(model, folder), written[0])
    shutil.copyfile(rollout(), written[1])
    if contexts:
        for name, offset in (("contexts.npz", 1), ("eval.npz", 2)):
            walk = np.random.default_rng(seed + offset).standard_normal((contexts, CONTEXT)).cumsum(axis=1)
            mask = np.zeros((contexts, CONTEXT), np.bool_)
            np.savez(folder / name, context=walk.astype(np.float32), mask=mask)
            written.append(folder / name)
    return tuple(written)


def exported(module: Any, seed: int = 0) -> Any:  # noqa: ANN401  (torch is optional: its types are unknown here)
    """Return the graph of a `Forecast`, with dynamic batch and context length, as an onnx.ModelProto.

    Raises
    ------
    InputError
        A weight lost its name.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(2, CONTEXT, generator=generator).cumsum(1)
    batch = torch.export.Dim("batch", min=1, max=1024)
    patches = torch.export.Dim("patches", min=2, max=512)
    shape = {0: batch, 1: PATCH * patches}
    program = torch.onnx.export(
        module,
        (context, torch.zeros(2, CONTEXT, dtype=torch.bool)),
        input_names=["context", "mask"],
        output_names=["forecast", "quantile_head"],
        dynamic_shapes={"context": shape, "mask": shape},
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
        optimize=False,
    )
    if program is None:
        raise InputError("torch returned no ONNX program", todo="Use torch 2.6 or later")
    fold_all_but(program.model, set(dict(module.named_parameters())), transposes=True)
    model = program.model_proto
    lost = name_by_content(model, {n: p.detach().numpy() for n, p in module.network.named_parameters()})
    if lost:
        raise InputError(
            f"{len(lost)} weights lost their names, first {lost[0]}", todo="Use another version of torch"
        )
    merge_constants(model)
    strip(model)
    return model
