"""Writes models/zoo/REAL_MODELS.md: small models against float16 conversion and onnxruntime's INT8 at equal bytes.

The models are those of `real_models.py`. Every file that another method makes is compared with ours of at most its
bytes. Figures are kept row by row, so an interrupted study goes on where it stopped.

    python -m tools.study.real_models --runs FOLDER --out models/zoo/REAL_MODELS.md [--model silero]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from tools.study.real_cases import MODELS, RECURRENT, Case, case_of
from tqs_onnx.allocation.budget import Budget
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.options import QuantizeOptions
from tqs_onnx.jobs.quantize import Job, Outcome, quantize
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.options import RunOptions
from tqs_onnx.rollout.testbed import Testbed
from tqs_onnx.rounding.assign import Method
from tqs_onnx.verification.evaluate import measure_drift
from tqs_passes.errors import InfeasibleError, TqsError
from tqs_passes.files.model import load_model
from tqs_passes.files.save import save_model
from tqs_passes.pipeline import Pipeline
from tqs_passes.transforms.half_precision.whole import HalfWhole
from tqs_passes.transforms.slim.short_names import ShortNames
from tqs_passes.transforms.slim.slimming import slim_passes

ROUNDINGS: tuple[Method, ...] = ("unbiased", "qep")
NOTHING: frozenset[str] = frozenset()
_THEIR_ERRORS = (
    *(RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError),
    onnx.shape_inference.InferenceError,
)


def theirs(source: Path, folder: Path) -> dict[str, Path | str]:
    """Return the files of other methods, or why there is none; graphs are slimmed like ours."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found: dict[str, Path | str] = {}
    opened = open_source(source)
    weights = frozenset(w.name for w in opened.survey.weights)
    try:
        half = HalfWhole().apply(Pipeline(slim_passes(weights)).apply(opened.lifted).model).model
        save_model(ShortNames(weights).apply(half).model, folder / "float16.onnx")
        found["float16"] = folder / "float16.onnx"
    except TqsError as error:
        found["float16"] = error.what
    slim = (
        Pipeline((ShortNames(weights), *slim_passes(weights), ShortNames(weights))).apply(opened.lifted).model
    )
    plain = folder / "slim.onnx"
    del slim.proto.graph.value_info[:]  # their program believes it, also where it is wrong
    save_model(slim, plain)
    for label, per_channel in (("INT8 per tensor", False), ("INT8 per channel", True)):
        path = folder / f"{label.replace(' ', '_')}.onnx"
        try:
            quantize_dynamic(str(plain), str(path), per_channel=per_channel, weight_type=QuantType.QInt8)
        except _THEIR_ERRORS as error:  # what their program raises is part of the result
            found[label] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        save_model(ShortNames(NOTHING).apply(load_model(path)).model, path)
        found[label] = path
    return found


def measured(outcome: Outcome, file: Path) -> float:
    """Return the drift of a file on the evaluation contexts of a job; inputs that it does not have are not fed."""
    bed = outcome.bed
    require_loadable(file, bed.provider)
    nominal = bed.roll_file(outcome.source.path, keep_other=False)
    ours = _fed_like(bed, file).roll_file(file, keep_other=False)
    return measure_drift(
        nominal.outputs, ours.outputs, bed.spec, bed.contexts, bed.sigma, nominal.time_after
    ).total


def _fed_like(bed: Testbed, file: Path) -> Testbed:
    """Return the testbed of a file that may lack static inputs of the model."""
    source = open_source(file)
    names = {i.name for i in source.signature.inputs}
    lacking = {s.input for s in bed.spec.static} - names
    if not lacking:
        return bed
    spec = bed.spec.model_copy(update={"static": tuple(s for s in bed.spec.static if s.input in names)})
    arrays = {name: array for name, array in bed.contexts.arrays.items() if name not in lacking}
    contexts = replace(bed.contexts, arrays=arrays)
    return Testbed(source.lifted, source.survey, spec, contexts, bed.run, bed.sigma)


def made(case: Case, folder: Path, budget: int, rounding: Method) -> Outcome:
    """Return our file within a budget; the scores and responses of a case are measured once."""
    options = QuantizeOptions(Budget(max_bytes=budget), run=RunOptions("cpu", threads=1))
    refine = replace(options.refine, rounding=replace(options.refine.rounding, method=rounding))
    return quantize(Job(case.source, case.data, folder / "ours", replace(options, refine=refine), True))


def row_of(case: Case, folder: Path, label: str, budget: int, other: Path | None) -> dict[str, object]:
    """Measure one row; below the smallest file, that one takes the place of the budget."""
    row: dict[str, object] = {"source": case.source.stat().st_size, "compared": label, "bytes": budget}
    for rounding in ROUNDINGS:
        try:
            outcome = made(case, folder, budget, rounding)
        except InfeasibleError as error:
            row["bytes"] = budget = error.smallest_bytes
            outcome = made(case, folder, budget, rounding)
            kinds = outcome.verification.bytes_by_kind
            row["compared"] = (
                f"{label}; the smallest is {case.source.stat().st_size / budget:.2f} times smaller: "
                f"{kinds['graph'] + kinds['names']:,} bytes of it are graph and names"
            )
        row[rounding], row[f"{rounding} bytes"] = (
            outcome.verification.drift.total,
            outcome.verification.bytes_out,
        )
        if other is not None and "drift" not in row:
            try:
                row["drift"] = measured(outcome, other)
            except TqsError as error:
                row["drift"] = str(error.what)
    return row


def study(name: str, case: Case, runs: Path) -> list[dict[str, object]]:
    """Return a row for every compared file, from `runs` where it was measured before."""
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    others = theirs(case.source, folder)
    if name in RECURRENT:  # half of the bytes tell nothing apart
        del others["float16"]
    others |= {"the owner's half": case.half} if case.half else {}
    wanted: list[tuple[str, Path | str | None, int]] = [
        ("8 times smaller", None, case.source.stat().st_size // 8),
        *(
            (label, other, other.stat().st_size if isinstance(other, Path) else 0)
            for label, other in others.items()
        ),
    ]
    rows: list[dict[str, object]] = []
    for label, other, budget in wanted:
        if isinstance(other, str):
            rows.append({"source": case.source.stat().st_size, "compared": label, "drift": other})
            continue
        kept = folder / f"{label.replace(' ', '_')}.json"
        if not kept.exists():
            row = row_of(case, folder, label, budget, other)
            kept.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            print(name, row, file=sys.stderr, flush=True)
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
    return rows


def shown(value: object) -> str:
    """Return a cell."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


TEXT = """# Real models

Made by `python -m tools.study.real_models --runs RUNS --out models/zoo/REAL_MODELS.md`; no figure is typed in by hand.
All files, also those of other methods, have short names and a slim graph. Ours get at most the bytes of the file they
are compared with. Drifts are in units of each variable's deviation, on contexts that chose nothing.

## Models of other people

Their licences lie beside them in `$TQS_DATA/models`; nothing of theirs is in this repository. They are rolled out as
their tasks demand, on contexts cut from standardised ETTm1 and weather: six for scoring, six others for the drifts.
fracast (Apache-2.0, 85,001 weights) is not here: its package holds PyTorch weights and a period search, no ONNX file.
silero hears hardly any speech in these tables: its probability varies so little that drifts in its deviation are large.

{real}
## The recurrent models of the zoo

On their own tables: scored on validation rows, QEP calibrated on training rows, drifts on test rows.

{zoo}"""
COLUMNS = ("model", "bytes", "compared with", "its bytes", "its drift", "ours, no data", "ours, QEP")


def line_of(name: str, row: dict[str, object]) -> str:
    """Return a line of a table."""
    cells = ("source", "compared", "bytes", "drift", *ROUNDINGS)
    return f"| {name} | " + " | ".join(shown(row.get(c)) for c in cells) + " |"


def table_of(names: Iterable[str], runs: Path, wanted: Sequence[str]) -> str:
    """Return the table of some models; those that are not wanted only get the rows that were measured before."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---|---:|---:|---:|---:|"]
    for name in names:
        done = runs / f"{name}.json"
        if not done.exists() and wanted and name not in wanted:
            kept = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((runs / name).glob("*.json"))]
            lines += [line_of(name, row) for row in kept]
            lines.append(f"| {name} | | {'others ' if kept else ''}not measured | | | | |")
            continue
        if not done.exists():
            case = case_of(name, runs)
            if case is None:
                lines.append(f"| {name} | | not in `$TQS_DATA/models` | | | | |")
                continue
            done.write_text(json.dumps(study(name, case, runs), indent=1) + "\n", encoding="utf-8")
        for row in json.loads(done.read_text(encoding="utf-8")):
            lines.append(line_of(name, row))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, required=True, help="Folder of the figures; what is there stays."
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], choices=sorted((*MODELS, *RECURRENT)))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    real, zoo = (table_of(names, given.runs, given.model) for names in (MODELS, RECURRENT))
    given.out.write_text(TEXT.format(real=real, zoo=zoo), encoding="utf-8")


if __name__ == "__main__":
    main()
