"""Prints the output of commands: progress and lines on stderr, one JSON object or a table on stdout."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tqs_onnx.cli.only_json import json_out
from tqs_onnx.scoring.score import Progress as Tick
from tqs_passes.errors import one_line

_LOG = logging.getLogger(__name__)


def say(line: str) -> None:
    """Print a line on stderr."""
    click.echo(line, err=True)


def print_json(document: object) -> None:
    """Print one JSON object on stdout; numbers that JSON cannot represent become null."""
    click.echo(json.dumps(_plain(document), indent=2, ensure_ascii=False), file=json_out())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1, title: str = ""
) -> None:
    """Print a table on stdout; the first `left` columns are text, the others are numbers."""
    wide = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(_cell(value), 120)) for value in row))
    wide.print(table)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress(what: str, of: str = "weights") -> Generator[Tick, None, None]:
    """Yield a progress callback that counts `of`: a bar on a terminal, otherwise one summary line at the end."""
    start = time.perf_counter()
    if not sys.stderr.isatty():

        def tick(done: int, total: int, label: str) -> None:
            if done == total:
                _LOG.info("%s: %d %s in %.1f s", what, total, of, time.perf_counter() - start)

        yield tick
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(of))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


def kinds_line(kinds: Mapping[str, int]) -> str:
    """Return the bytes of a model by kind, largest first, without kinds that take none."""
    found = sorted(kinds.items(), key=lambda item: -item[1])
    return " · ".join(f"{kind} {n:,}" for kind, n in found if n)
