"""Turns the table of flags into command options, and their values into option classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import cloup

from tqs_onnx.cli import flags as table
from tqs_onnx.cli.flag import Flag, Group, default_of, nested
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.jobs.options import BaselineOptions, QuantizeOptions, options_from

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

json_option = cloup.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."
)
force_option = cloup.option(
    "--force", is_flag=True, help="Replace the files of an earlier run; its measurements are reused."
)


def out_option(help: str = "Run directory.", *, required: bool = True) -> Callable[[F], F]:  # noqa: A002
    """Return `--out`."""
    return cloup.option("--out", type=FILE, required=required, help=help)


def flag_options(
    chosen: Sequence[Flag],
    *,
    everyday: Sequence[Flag] = (),
    required: Sequence[Flag] = (),
    more: Sequence[Callable[..., Any]] = (),
    kind: type[QuantizeOptions] | type[BaselineOptions] = QuantizeOptions,
) -> Callable[[F], F]:
    """Return a decorator that gives a command these flags, in groups, the everyday ones first.

    Parameters
    ----------
    chosen : sequence of Flag
    everyday : sequence of Flag
        Flags of `chosen` that are listed first, whatever their group.
    required : sequence of Flag
    more : sequence of decorators
        Additional options of the everyday group.
    kind : type
        Option class whose defaults are shown.
    """
    groups: dict[Group, list[Callable[..., Any]]] = {
        Group.EVERYDAY: [*(_option(f, f in required, kind) for f in everyday), *more]
    }
    for flag in chosen:
        if flag not in everyday:
            groups.setdefault(flag.group, []).append(_option(flag, flag in required, kind))

    def apply(function: F) -> F:
        for title in reversed([g for g in Group if groups.get(g)]):
            function = cloup.option_group(title.value, *groups[title])(function)
        return function

    return apply


def _option(
    flag: Flag, required: bool, kind: type[QuantizeOptions] | type[BaselineOptions]
) -> Callable[..., Any]:
    default = default_of(flag, kind)
    text = flag.help if default is None else f"{flag.help.rstrip('.')} [default: {default}]."
    more: dict[str, Any] = (
        {} if required else {"default": None}
    )  # a default, even None, would count as a value
    return cloup.option(
        flag.name,
        flag.key,
        type=None if flag.switch else flag.kind,
        is_flag=flag.switch,
        required=required,
        multiple=flag.several,
        metavar=flag.metavar,
        help=text,
        **more,
    )


def quantize_options(given: Mapping[str, Any], chosen: Iterable[Flag] = table.QUANTIZE) -> QuantizeOptions:
    """Return the options that the flags set; all others keep their defaults.

    Raises
    ------
    InputError
        A value does not fit its field.
    """
    settings = nested([f for f in chosen if not f.path.startswith("data.")], given)
    return options_from(settings, QuantizeOptions)


def baseline_options(given: Mapping[str, Any]) -> BaselineOptions:
    """Return the options of a baseline; see `quantize_options`."""
    return options_from(nested(table.BASELINE, given), BaselineOptions)


def data_files(given: Mapping[str, Any]) -> DataOptions:
    """Return the given files and limits."""
    chosen = (*table.DATA, *table.EVALUATION, *table.CALIBRATION)
    found = nested(chosen, given).get("data", {})
    settings: dict[str, Any] = {**found, "input_scale": tuple(found.get("input_scale", ()))}
    return DataOptions(**settings)
