"""Real checkpoints: files in the very format of the releases, written from random networks, loaded by our code.

What needs the packages is marked `export`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tqs_models import aurora, timesfm
from tqs_models.checkpoint import load_weights
from tqs_passes.errors import InputError

SIZES = {"embed_dim": 64, "encoder_depths": (2, 2, 2), "decoder_depths": (2, 2, 2)}
WHAT = "the right file"


def assert_same_weights(one: Any, other: Any) -> None:
    import torch

    held = other.state_dict()
    assert held
    assert all(torch.equal(value, held[name]) for name, value in one.state_dict().items())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.ckpt: no such file. Give the right file"):
        load_weights(lambda _: None, tmp_path / "none.ckpt", WHAT)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch\nfor a.b"), KeyError("w"), AssertionError()])
def test_what_the_package_refuses_is_one_line(tmp_path: Path, error: Exception) -> None:
    def load(path: str) -> None:
        raise error

    (tmp_path / "bad.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="does not hold the weights of this network") as caught:
        load_weights(load, tmp_path / "bad.ckpt", WHAT)
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_program_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    def load(path: str) -> None:
        raise TypeError

    (tmp_path / "any.ckpt").write_bytes(b"")
    with pytest.raises(TypeError):
        load_weights(load, tmp_path / "any.ckpt", WHAT)


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
def test_a_safetensors_file_of_timesfm_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("timesfm", reason="needs the package timesfm and torch")
    from safetensors.torch import save_file

    from tqs_models.timesfm.network import random_network

    source, network = random_network(1, 2), random_network(0, 2)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_weights(network.load_checkpoint, tmp_path / "model.safetensors", WHAT)
    assert_same_weights(source, network)


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("timesfm", reason="needs the package timesfm and torch")
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"model\.safetensors: does not hold"):
        timesfm.export(tmp_path, checkpoint=tmp_path / "model.safetensors")


def released(state: dict[str, Any], patch: int = 4) -> dict[str, Any]:
    """Return Aurora's weights as the released file has them: under `net.`, embeddings and heads by number."""
    import torch

    order = {"surf": ("2t", "10u", "10v", "msl"), "atmos": ("z", "u", "v", "t", "q")}
    embedded = {"surf": (*order["surf"], "lsm", "z", "slt"), "atmos": order["atmos"]}
    held = dict(state)
    for part, names in embedded.items():
        base = f"encoder.{part}_token_embeds.weight"
        held[base] = torch.cat([held.pop(f"{base}s.{name}") for name in names], dim=1)
    for part, names in order.items():
        heads = f"decoder.{part}_heads"
        weight = torch.stack([held.pop(f"{heads}.{n}.weight") for n in names], dim=1)
        bias = torch.stack([held.pop(f"{heads}.{n}.bias") for n in names], dim=1)
        held[f"decoder.{part}_head.weight"] = weight.reshape(len(names) * patch**2, -1)
        held[f"decoder.{part}_head.bias"] = bias.reshape(-1)
    return {f"net.{name}": value for name, value in held.items()}


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["released", "plain"])
def test_a_checkpoint_of_aurora_is_loaded(tmp_path: Path, form: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from tqs_models.aurora.timm_names import stand_in_for_timm

    stand_in_for_timm()
    pytest.importorskip("aurora", reason="needs the package microsoft-aurora")
    from tqs_models.aurora.network import random_network

    source, network = random_network(1, **SIZES), random_network(0, **SIZES)
    state = source.state_dict()
    torch.save(released(state) if form == "released" else state, tmp_path / "aurora.ckpt")
    load_weights(network.load_checkpoint_local, tmp_path / "aurora.ckpt", WHAT)
    assert_same_weights(source, network)


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from tqs_models.aurora.timm_names import stand_in_for_timm

    stand_in_for_timm()
    pytest.importorskip("aurora", reason="needs the package microsoft-aurora")
    from tqs_models.aurora.network import random_network

    torch.save(random_network(1, **SIZES).state_dict(), tmp_path / "aurora.ckpt")
    with pytest.raises(InputError, match="does not hold the weights"):
        aurora.export(tmp_path, checkpoint=tmp_path / "aurora.ckpt")
