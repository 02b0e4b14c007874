# pyright: basic, reportMissingImports=false
# mypy: disable-error-code="misc, no-any-return, import-not-found, import-untyped, no-untyped-call"
"""Write a step of Aurora-small as model.onnx, with its rollout spec and random contexts.

Needs the [export] extra, microsoft-aurora and its einops; `timm_names` replaces a missing timm.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tqs_models.aurora import ATMOS, HOURS, LICENCE, STATIC, SURFACE, rollout, time_encoding
from tqs_models.checkpoint import load_weights
from tqs_models.lean import fold_all_but, merge_constants, name_by_content, strip
from tqs_passes.errors import InputError
from tqs_passes.files.model import Model
from tqs_passes.files.save import save_model

_SIZES = ("embed_dim", "num_heads", "latent_levels")
_STEPS = 12


def write_aurora(
    folder: Path,
    checkpoint: Path | None,
    grid: tuple[int, int],
    levels: tuple[int, ...],
    seed: int,
    contexts: int,
    settings: Mapping[str, str],
) -> tuple[Path, ...]:
    """Write the exported step into `folder`.

    Parameters
    ----------
    folder : Path
        Must exist.
    checkpoint : Path or None
        The package's checkpoint; None: random weights.
    grid : tuple of int
        Latitudes from 90° north, without the south pole, and longitudes; multiples of 4.
    levels : tuple of int
        Pressure levels in hPa that the package knows.
    seed : int
        Seed of random weights and contexts.
    contexts : int
        Number of random states written to contexts.npz, and of others written to eval.npz; 0: none.
    settings : mapping of str to str
        Sizes of the package's constructor: embed_dim, num_heads, latent_levels, and encoder_depths and
        decoder_depths as "2,6,2" (random weights only).

    Returns
    -------
    tuple of Path
        The files written, the model first.

    Raises
    ------
    InputError
        torch or aurora is missing, the grid does not fit, a setting is unknown, the checkpoint does not fit, or a
        weight lost its name.
    """
    rows, columns = grid
    if rows % 4 or columns % 4:
        raise InputError(
            f"{rows} x {columns} is not a multiple of 4", todo="Crop the grid, e.g. 721 rows to 720"
        )
    sizes = _sizes(settings)
    if sizes and checkpoint is not None:
        raise InputError(
            "sizes can be set for random weights only", where=str(checkpoint), todo="Leave out `settings`"
        )
    try:
        import torch

        from tqs_models.aurora.network import START, Step, random_network
    except ImportError as error:
        raise InputError(
            f"cannot import {error.name}", todo="pip install 'tqs-onnx[export]' microsoft-aurora"
        ) from error
    network = random_network(seed, **sizes)
    if checkpoint is not None:
        load_weights(network.load_checkpoint_local, checkpoint, "aurora-0.25-small-pretrained.ckpt")
    latitude = torch.linspace(90, -90, rows + 1)[:rows]
    longitude = torch.linspace(0, 360, columns + 1)[:columns]
    step = Step(network.eval(), latitude, longitude, levels).eval()
    state = random_states(step, 2 * contexts + 1, grid, seed)
    times = [START + timedelta(hours=HOURS * i) for i in range(_STEPS)]
    encodings = time_encoding(times, network.encoder.embed_dim)
    first = [state["surf"][:1], state["atmos"][:1], state["static"], encodings[:1]]
    model = exported(step, tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in first))
    licence = LICENCE if checkpoint is not None else f"{LICENCE} (random weights)"
    model.metadata_props.add(key="license", value=licence)
    written = [folder / "model.onnx", folder / "rollout.toml"]
    save_model(Model(model, folder), written[0])
    shutil.copyfile(rollout(), written[1])
    if contexts:
        for name, k in (("contexts.npz", 1), ("eval.npz", 1 + contexts)):
            arrays: dict[str, Any] = {v: state[v][k : k + contexts] for v in ("surf", "atmos")}
            for key, shared in (("static", state["static"]), ("time_encoding", encodings)):
                arrays[key] = np.repeat(shared[None], contexts, axis=0)
            np.savez(folder / name, **arrays)
            written.append(folder / name)
    return tuple(written)


def exported(step: Any, example: tuple[Any, ...]) -> Any:  # noqa: ANN401  (torch is optional: unknown types)
    """Return the graph of a `Step` for the shapes of `example`, as an onnx.ModelProto.

    Raises
    ------
    InputError
        A weight lost its name.
    """
    import torch

    with torch.no_grad():
        step(
            *example
        )  # fills the package's cache of window masks with real tensors before the exporter traces it
    program = torch.onnx.export(
        step,
        example,
        input_names=["surf", "atmos", "static", "time_encoding"],
        output_names=["surf_next", "atmos_next"],
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
        optimize=False,
    )
    if program is None:
        raise InputError("torch returned no ONNX program", todo="Use torch 2.6 or later")
    fold_all_but(program.model, set(dict(step.named_parameters())), transposes=True)
    model = program.model_proto
    lost = name_by_content(model, {n: p.detach().numpy() for n, p in step.network.named_parameters()})
    if lost:
        raise InputError(
            f"{len(lost)} weights lost their names, first {lost[0]}", todo="Use another version of torch"
        )
    merge_constants(model)
    strip(model)
    return model


def random_states(step: Any, n: int, grid: tuple[int, int], seed: int) -> dict[str, np.ndarray]:  # noqa: ANN401
    """Return `n` random states around the package's climate: surf, atmos, and one static field for all."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, sides in (
        ("surf", (n, 2, len(SURFACE))),
        ("atmos", (n, 2, len(ATMOS), len(step.levels))),
        ("static", (len(STATIC),)),
    ):
        mean, deviation = (getattr(step, f"{name}_{kind}").numpy() for kind in ("mean", "deviation"))
        made[name] = mean + deviation * rng.standard_normal((*sides, *grid), np.float32)
    return made


def _sizes(settings: Mapping[str, str]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for name, text in settings.items():
        if name not in (*_SIZES, "encoder_depths", "decoder_depths"):
            raise InputError(f"unknown setting {name!r}", todo=f"Use one of: {', '.join(_SIZES)}, *_depths")
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError as error:
            raise InputError(f"{name} cannot be {text!r}", todo="Write whole numbers") from error
        sizes[name] = numbers[0] if name in _SIZES else numbers
    return sizes
