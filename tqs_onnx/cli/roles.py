"""`--role`: put weights into a role by hand, where the graph does not tell or the paper sees it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click

from tqs_onnx.inputs.source import Source
from tqs_passes.errors import InputError
from tqs_passes.survey.roles import with_roles
from tqs_passes.weights import Role

F = TypeVar("F", bound=Callable[..., Any])


def role_option(function: F) -> F:
    """Add `--role PATTERN=ROLE`, repeatable."""
    return click.option(
        "--role",
        "roles",
        multiple=True,
        metavar="PATTERN=ROLE",
        help="Role of the weights whose label matches a shell pattern, the last one counts: "
        f"{', '.join(Role)}. Repeatable.",
    )(function)


def with_given_roles(source: Source, given: Sequence[str]) -> Source:
    """Return a source whose weights have the roles that `--role` gives them.

    Raises
    ------
    InputError
        There is no such role, or a pattern matches no weight.
    """
    return replace(source, survey=with_roles(source.survey, [_pattern(text) for text in given]))


def _pattern(text: str) -> tuple[str, Role]:
    pattern, _, role = text.rpartition("=")
    if not pattern or role not in {r.value for r in Role}:
        raise InputError(
            f"{text!r} is no role",
            where="--role",
            todo=f"Write PATTERN=ROLE, e.g. 'encoder.*=io.input'; roles are {', '.join(Role)}",
        )
    return pattern, Role(role)
