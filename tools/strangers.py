"""Take models that nobody described through the whole trip with nothing but the model, and print a table.

    python tools/strangers.py                          the models in the shapes of strangers that the tests build
    python tools/strangers.py $TQS_DATA/models/*/*.onnx   any files
    … --compression 4 --out table.md                   the size asked for; if it cannot be met, the smallest file
    … --draft                                          only draft the rollouts

A line: what is fed back, what is asked, bytes before and after, times smaller, drift on made contexts, seconds.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from tests.strangers.shapes import STRANGERS
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.inputs.data import DataOptions
from tqs_onnx.inputs.drafting import Draft, drafted
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, Outcome, quantize
from tqs_onnx.rollout.options import RunOptions
from tqs_passes.errors import InfeasibleError, TqsError

HEAD = "| model | bytes | rollout | asked | compression | bytes | times smaller | drift, made contexts | s | remark |"


@dataclass(frozen=True, slots=True)
class Taken:
    """One model, as far as it got."""

    name: str
    n_bytes: int
    draft: Draft | None = None
    outcome: Outcome | None = None
    asked: float | None = None
    seconds: float = 0.0
    remark: str = ""


def shaped(folder: Path) -> Iterator[Path]:
    """Write the models of the tests into a folder."""
    for stranger in STRANGERS:
        path = folder / f"{stranger.name}.onnx"
        path.write_bytes(stranger.build().SerializeToString())
        yield path


def take(path: Path, compression: float | None, out: Path) -> Taken:
    """Draft, and quantize unless `compression` is None; a size that cannot be met becomes the smallest that can."""
    start = time.perf_counter()
    name = f"{path.parent.name}/{path.stem}"
    found: Draft | None = None
    try:
        source = open_source(path)
        found = drafted(source)
        if compression is None:
            return Taken(name, source.facts.n_bytes, found, seconds=time.perf_counter() - start)
        options = QuantizeOptions(Budget(compression), run=RunOptions("cpu", threads=1))
        job = Job(path, DataOptions(None), out, options)
        remark = ""
        try:
            outcome = quantize(job)
        except InfeasibleError as error:
            if error.smallest_bytes is None:
                raise
            remark = f"{compression:g} cannot be met: this is the smallest file"
            options = QuantizeOptions(Budget(max_bytes=error.smallest_bytes), run=options.run)
            outcome = quantize(Job(path, DataOptions(None), out, options))
        seconds = time.perf_counter() - start
        return Taken(name, source.facts.n_bytes, found, outcome, compression, seconds, remark)
    except TqsError as error:
        return Taken(
            name, path.stat().st_size, found, None, compression, time.perf_counter() - start, str(error)
        )


def line(taken: Taken) -> str:
    """Return the row of a table."""
    draft, outcome = taken.draft, taken.outcome
    rollout = asked = "–"
    if draft is not None:
        fed = [f"{f.output} → {f.input} ({f.mode})" for f in draft.spec.feedback]
        rollout = f"{draft.spec.rollout.steps} × " + ("; ".join(fed) or "nothing fed back")
        asked = "; ".join(question.about for question in draft.questions) or "–"
    cells: list[str] = [taken.name, f"{taken.n_bytes:,}", rollout, asked]
    if outcome is None:
        cells += ["–" if taken.asked is None else f"{taken.asked:g}", "–", "–", "–"]
    else:
        v = outcome.verification
        cells += [f"{taken.asked:g}", f"{v.bytes_out:,}", f"{v.compression:.2f}", f"{v.drift.total:.3g}"]
    cells += [f"{taken.seconds:.1f}", taken.remark.replace("|", "/").replace("\n", " ")]
    return "| " + " | ".join(cells) + " |"


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--compression", type=float, default=4.0, show_default=True)
@click.option("--draft", is_flag=True, help="Only draft the rollouts.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table to this file, too.")
def main(files: Sequence[Path], compression: float, draft: bool, out: Path | None) -> None:
    """Print the table."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(files or shaped(Path(folder))):
            out_folder = Path(folder) / "runs" / str(number)
            lines.append(line(take(path, None if draft else compression, out_folder)))
            click.echo("\n".join(lines) if len(lines) == 3 else lines[-1])
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
