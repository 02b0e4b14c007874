"""`tqs doctor`: what really works here."""

from __future__ import annotations

import click

from tqs_onnx.cli.options import json_option
from tqs_onnx.cli.show import print_json, print_table
from tqs_onnx.rollout.session import available_providers, probe_provider
from tqs_onnx.verification.manifest import versions


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    r"""Open a session on every provider and report which ones really run; exit 1 when not even the CPU does.

    \b
    Example:
      tqs doctor
    """
    listed = available_providers()
    found = {name: probe_provider(name) for name in listed}
    works = found.get("cpu", "missing") is None
    if as_json:
        print_json(
            {
                "versions": versions(),
                "providers": {n: {"works": e is None, "reason": e} for n, e in found.items()},
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
    return 0 if works else 1
