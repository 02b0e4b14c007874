"""Writes a report: the page and the model card, or the tables as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqs_onnx.jobs.run_directory import refuse_overwriting
from tqs_onnx.report.card import card_of
from tqs_onnx.report.page import html_page
from tqs_onnx.report.run import read_runs, tables_of
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text

REPORT_NAME = "report.html"
CARD_NAME = "card.md"

#: Returns the command that makes a run again from the settings in its manifest; None if it cannot be told.
Again = Callable[[Mapping[str, Any]], str | None]


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    as_csv: bool = False,
    again: Again = lambda _: None,
    force: bool = False,
) -> list[Path]:
    """Write the report of some runs; return its files. One that is there already with the same content is left alone.

    Parameters
    ----------
    folders : sequence of Path
        Run directories; the first is shown in full.
    out : Path, optional
        The page; default: in the first folder. For CSV, a folder; default: `tables` in the first folder.
    as_csv : bool
        Write the tables only.
    again : callable
    force : bool
        Replace files that are there.

    Raises
    ------
    InputError
        A folder is not a run directory, or another file exists under one of the names.
    """
    runs = read_runs(folders)
    if as_csv:
        target = out or folders[0] / "tables"
        texts = {target / f"{table.key}.csv": table.to_csv() for table in tables_of(runs)}
    else:
        page = out or folders[0] / REPORT_NAME
        commands = {r.name: [line] for r in runs if r.manifest and (line := again(r.manifest.settings))}
        texts = {page: html_page(runs, commands)}
        if runs[0].manifest is not None:
            line = commands.get(runs[0].name, [None])[0]
            texts[page.with_name(CARD_NAME)] = card_of(runs[0], runs[0].manifest, line)
    _require_free(texts, folders, force=force)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return list(texts)


def _require_free(texts: Mapping[Path, str], folders: Sequence[Path], *, force: bool) -> None:
    inputs = [
        path for folder in folders for path in folder.iterdir() if path.suffix in (".json", ".npz", ".onnx")
    ]
    refuse_overwriting(texts, inputs)
    for path, text in texts.items():
        if path.is_dir():
            raise InputError("is a folder", where=str(path), todo="Name a file with `out`")
        if path.exists() and not force and not _holds(path, text):
            raise InputError("already exists", where=str(path), todo="Choose another `out`, or give `force`")


def _holds(path: Path, text: str) -> bool:
    """Return whether a file has this content: an earlier run may have been stopped between two files."""
    content = text.encode()
    return path.stat().st_size == len(content) and path.read_bytes() == content
