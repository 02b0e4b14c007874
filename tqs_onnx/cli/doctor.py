"""`tqs doctor`: test which execution providers work on this machine."""

from __future__ import annotations

import click
import cloup

from tqs_onnx.cli.options import json_option
from tqs_onnx.cli.show import print_json, print_table
from tqs_onnx.rollout.session import available_providers, installed_runtimes, probe_provider, resolve_provider
from tqs_onnx.verification.manifest import versions


@cloup.command("doctor")
@json_option
def command(as_json: bool) -> int:
    r"""Open a session on every provider and report which ones work; exit 1 if not even the CPU does.

    \b
    Example:
      tqs doctor
    """
    found = {name: probe_provider(name) for name in available_providers()}
    works = found.get("cpu", "missing") is None
    warnings = _warnings(installed_runtimes())
    if as_json:
        print_json(
            {
                "versions": versions(),
                "providers": {n: {"works": e is None, "reason": e} for n, e in found.items()},
                "auto": resolve_provider("auto"),
                "warnings": warnings,
            }
        )
        return 0 if works else 1
    for name, text in versions().items():
        click.echo(f"{name} {text}")
    print_table(
        ["provider", "works", "reason"],
        [[n, "yes" if e is None else "no", e or ""] for n, e in found.items()],
        left=3,
    )
    click.echo(f"--providers auto selects {resolve_provider('auto')} here")
    for warning in warnings:
        click.echo(f"warning: {warning}")
    return 0 if works else 1


def _warnings(runtimes: tuple[str, ...]) -> list[str]:
    """Return the problems of the installed packages."""
    if len(runtimes) < 2:
        return []
    names = " and ".join(runtimes)
    return [
        f"{names} are installed together: they share one folder, and the order of their installation decides which one "
        f"runs. Remove all of them, then install one: pip uninstall -y {' '.join(runtimes)}"
    ]
