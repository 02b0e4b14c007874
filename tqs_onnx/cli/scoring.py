"""Options of a sweep, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, cast

import click

from tqs_onnx.cli.options import F, all_of
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.score.plan.options import SweepOptions
from tqs_onnx.score.plan.probe import Probe, ProbeKind
from tqs_passes.errors import InputError

engine_options = all_of(
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who measures: this machine, or a Ray cluster (tqs-onnx[ray]).",
    ),
    click.option(
        "--address",
        help="Head of the Ray cluster, HOST:PORT [default: this machine's cluster, else one started here].",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Processes, or most actors on a cluster [default: 1, or as many as there is room for].",
    ),
)


def probe_option(*more: str) -> Callable[[F], F]:
    """Return `--probe`, with `more` choices than the kinds of probes."""
    return click.option(
        "--probe",
        type=click.Choice([*(k.value for k in ProbeKind), *more]),
        default="quant",
        show_default=True,
        help="Perturbation.",
    )


probe_settings = all_of(
    click.option(
        "--probe-bits",
        type=click.IntRange(2, 8),
        default=6,
        show_default=True,
        help="Bits of the reference rounding.",
    ),
    click.option(
        "--response-bits",
        default="4,2",
        show_default=True,
        help="Further widths at which the response is measured, for the allocator; 'none' for none.",
    ),
    click.option(
        "--draws", type=click.IntRange(min=1), default=1, show_default=True, help="Draws of the gauss probe."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the gauss probe."),
    click.option(
        "--horizons", help="Steps at which γ is taken, e.g. 1,5,10 [default: a schedule up to --steps]."
    ),
    click.option(
        "--units",
        type=click.Choice(["std", "raw"]),
        default="std",
        show_default=True,
        help="Units of divergence.",
    ),
)

probe_options = all_of(probe_option(), probe_settings)


def sweep_options(options: dict[str, Any]) -> SweepOptions:
    """Return the sweep given.

    Raises
    ------
    InputError
        `--horizons` is no increasing list of steps, or `--address` is given without a cluster.
    """
    if options["address"] is not None and options["engine"] != "ray":
        raise InputError("--address names a Ray cluster", todo="Give --engine ray with it")
    return SweepOptions(
        probe=Probe(
            kind=ProbeKind(options["probe"]),
            bits=options["probe_bits"],
            draws=options["draws"],
            seed=options["seed"],
        ),
        response_bits=_response_bits(options["response_bits"]),
        horizons=_horizons(options["horizons"]),
        units=cast("Literal['std', 'raw']", options["units"]),
        provider=resolve_provider(options["providers"]),
        batch=options["batch"],
        threads=options["threads"],
        engine=cast("Literal['local', 'ray']", options["engine"]),
        address=options["address"],
        workers=options["workers"],
    )


def _response_bits(text: str) -> tuple[int, ...]:
    if text.strip().lower() == "none":
        return ()
    try:
        bits = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"--response-bits {text!r} is not a list of widths", todo="Write e.g. 4,2"
        ) from error
    if any(not 1 <= b <= 8 for b in bits):
        raise InputError(f"--response-bits {text!r} must lie between 1 and 8", todo="Write e.g. 4,2")
    return bits


def _horizons(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--horizons {text!r} is not a list of steps", todo="Write e.g. 1,5,10") from error
    if steps[0] < 1 or any(b <= a for a, b in pairwise(steps)):
        raise InputError(f"--horizons {text!r} must increase from 1 or more", todo="Write e.g. 1,5,10")
    return steps
