"""`tqs doctor`: test which execution providers work on this machine, and where they run a model."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from tqs_onnx.cli.options import FILE, json_option
from tqs_onnx.cli.show import print_json, print_table
from tqs_onnx.rollout.gpu import gpu_versions
from tqs_onnx.rollout.options import Provider
from tqs_onnx.rollout.provider_options import TF32_OVERRIDE, rounds_to_tf32
from tqs_onnx.rollout.session import (
    available_providers,
    installed_runtimes,
    open_session,
    probe_provider,
    resolve_provider,
)
from tqs_onnx.verification.manifest import versions
from tqs_passes.errors import InputError


@cloup.command("doctor")
@cloup.argument("model", type=FILE, required=False)
@json_option
def command(model: Path | None, as_json: bool) -> int:
    r"""Open a session on every provider and report which ones work; exit 1 if not even the CPU does.

    With MODEL, also load it on every provider that works, and count the nodes that a GPU leaves to the CPU.

    \b
    Example:
      tqs doctor
      tqs doctor model.onnx
    """
    found: dict[Provider, str | None] = {name: probe_provider(name) for name in available_providers()}
    works = found.get("cpu", "missing") is None
    warnings = _warnings(installed_runtimes(), found)
    working: list[Provider] = [name for name, error in found.items() if error is None]
    placed = {} if model is None else {name: _placed(model, name) for name in working}
    if as_json:
        print_json(
            {
                "versions": versions() | gpu_versions(),
                "providers": {n: {"works": e is None, "reason": e} for n, e in found.items()},
                "auto": resolve_provider("auto"),
                **({} if model is None else {"model": {"path": str(model), "placement": placed}}),
                "warnings": warnings,
            }
        )
        return 0 if works else 1
    for name, text in (versions() | gpu_versions()).items():
        click.echo(f"{name} {text}")
    print_table(
        ["provider", "works", "reason"],
        [[n, "yes" if e is None else "no", e or ""] for n, e in found.items()],
        left=3,
    )
    click.echo(f"--providers auto selects {resolve_provider('auto')} here")
    for name, where in placed.items():
        click.echo(f"{model} on {name}: {where}")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    return 0 if works else 1


def _placed(model: Path, provider: Provider) -> str:
    """Return where a provider runs the nodes of a model, or why it does not load there."""
    try:
        session = open_session(model, provider=provider)
    except InputError as error:
        return error.what
    if provider == "cpu":
        return "loads"
    return "loads; this runtime does not say where" if session.placement is None else str(session.placement)


def _warnings(runtimes: tuple[str, ...], found: dict[Provider, str | None]) -> list[str]:
    """Return the problems of the installed packages and of the environment."""
    warnings: list[str] = []
    if len(runtimes) > 1:
        names = " and ".join(runtimes)
        warnings.append(
            f"{names} are installed together: they share one folder, and the order of their installation decides which "
            f"one runs. Remove all of them, then install one: pip uninstall -y {' '.join(runtimes)}"
        )
    if found.get("tensorrt", "missing") is None and rounds_to_tf32("tensorrt"):
        warnings.append(
            f"TensorRT rounds matrix products to TF32 and has no option against it: set {TF32_OVERRIDE}=0"
        )
    return warnings
