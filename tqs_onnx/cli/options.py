"""Options that several commands share, and what they become; those of a sweep and of a plan have their own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tqs_onnx.inputs.data import DataFiles

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def all_of(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that applies all of these, so that they are listed in this order."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
force_option = click.option(
    "--force", is_flag=True, help="Replace what an earlier run left; what it measured is used again."
)

run_options = all_of(
    click.option(
        "--providers",
        type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]),
        default="cpu",
        show_default=True,
        help="Where the model runs.",
    ),
    click.option("--batch", type=click.IntRange(min=1), help="Most contexts a call [default: 32]."),
    click.option(
        "--threads", type=click.IntRange(min=0), default=0, help="Threads a call; 0: the runtime's choice."
    ),
)


def _data_options(*, required: bool) -> Callable[[F], F]:
    return all_of(
        click.option(
            "--rollout", type=FILE, required=required, help="Rollout spec: how outputs re-enter as inputs."
        ),
        click.option(
            "--contexts",
            type=FILE,
            required=required,
            help="Scoring contexts: .npz, folder of .npy, or a table (.csv, .csv.gz).",
        ),
        click.option(
            "--steps", type=click.IntRange(min=1), help="Model calls a rollout [default: the spec's]."
        ),
        click.option("--max-contexts", type=click.IntRange(min=1), help="At most so many scoring contexts."),
    )


data_options = _data_options(required=True)
optional_data_options = _data_options(required=False)

evaluation_options = all_of(
    click.option(
        "--eval-contexts", type=FILE, help="Evaluation contexts [default: the test rows of the table]."
    ),
    click.option(
        "--max-eval-contexts", type=click.IntRange(min=1), help="At most so many evaluation contexts."
    ),
)


gate_options = all_of(
    click.option("--max-drift", type=float, help="Fail (exit 3) when the drift is larger."),
    click.option(
        "--max-degradation", type=float, help="Fail when the worst variable's MAE degrades more, in percent."
    ),
    click.option("--min-compression", type=float, help="Fail when the file is larger than that."),
    click.option(
        "--gate",
        "gates",
        multiple=True,
        help="Any gate, e.g. 'drift:p95<=0.2', 'drift:variable=OT<=0.1', 'degradation:step=4<=5'. Repeatable.",
    ),
)


def data_files(options: dict[str, Any]) -> DataFiles:
    """Return the files and limits given."""
    return DataFiles(
        rollout=options["rollout"],
        contexts=options["contexts"],
        evaluation=options.get("eval_contexts"),
        steps=options["steps"],
        max_contexts=options["max_contexts"],
        max_eval_contexts=options.get("max_eval_contexts"),
        calibration=options.get("calibration"),
    )


def gate_texts(options: dict[str, Any]) -> list[str]:
    """Return every gate given, as text."""
    texts = list(options["gates"])
    if options["max_drift"] is not None:
        texts.append(f"drift<={options['max_drift']}")
    if options["max_degradation"] is not None:
        texts.append(f"degradation<={options['max_degradation']}")
    if options["min_compression"] is not None:
        texts.append(f"compression>={options['min_compression']}")
    return texts
