"""`tqs inspect`: list the weights of a model, and suggest its rollout spec."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import cloup

from tqs_onnx.allocation.request import require_scores_of
from tqs_onnx.cli.flags import ROLE
from tqs_onnx.cli.options import FILE, flag_options, json_option
from tqs_onnx.cli.show import kinds_line, print_json, print_table, say
from tqs_onnx.inputs.drafting import Draft, draft_text, drafted, questions
from tqs_onnx.inputs.source import Source, open_source, parse_role
from tqs_onnx.scoring.scores import Scores, read_scores
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.files.save import save_model
from tqs_passes.graph.random_ops import random_operators
from tqs_passes.survey.bytes_by_kind import BytesByKind, bytes_by_kind
from tqs_passes.survey.roles import with_roles
from tqs_passes.transforms.split_gates import SplitGates
from tqs_passes.weights import Weight

#: What scores add to the table.
_GAMMAS = ("γ_task", "γ_task of its input", "drift of its input at 8 bits")
_KEYS = ("gamma_task", "input_gamma_task", "input_drift")
#: Most copies of a weight that are named in its row.
_MOST_COPIES = 3


@cloup.command("inspect")
@cloup.argument("model", type=FILE)
@flag_options((ROLE,))
@cloup.option("--write-rollout", type=FILE, help="Write the drafted rollout spec to this file.")
@cloup.option(
    "--scores",
    type=FILE,
    help="scores.json of MODEL: also show γ of every weight, and of the input of its reader.",
)
@cloup.option(
    "--split-gates",
    type=FILE,
    help="Write the model to this file with one weight per gate, to score gates apart.",
)
@json_option
def command(
    model: Path,
    role: tuple[str, ...],
    write_rollout: Path | None,
    scores: Path | None,
    split_gates: Path | None,
    as_json: bool,
) -> None:
    r"""List the weights of MODEL, their readers, and other tensors with the reasons; draft its rollout spec.

    \b
    Example:
      tqs inspect model.onnx --write-rollout rollout.toml
    """
    source = open_source(model)
    source = replace(source, survey=with_roles(source.survey, [parse_role(text) for text in role]))
    found = drafted(source)
    known = None if scores is None else read_scores(scores)
    if known is not None:
        require_scores_of(source, known)
    gammas = _gammas(known)
    if split_gates is not None:
        _write_gates(source, split_gates)
    if write_rollout is not None:
        if write_rollout.exists():
            raise InputError("exists", where=str(write_rollout), todo="Remove it, or write to another file")
        write_text(write_rollout, draft_text(found))
    if as_json:
        print_json(_document(source, found, gammas))
        return
    weights = source.survey.weights
    total = sum(w.n_values for w in weights)
    click.echo(f"{model}: {source.facts.n_bytes:,} bytes, {len(weights)} weights of {total:,} values")
    click.echo(f"  bytes: {kinds_line(_kinds(source).to_dict())}")
    for kind, ports in (("input", source.signature.inputs), ("output", source.signature.outputs)):
        for port in ports:
            click.echo(f"  {kind} {port}")
    if weights:
        print_table(
            [
                *("weight", "role", "shape", "type", "readers", "axis", "values"),
                *(_GAMMAS if known is not None else ()),
                "notes",
            ],
            [
                [
                    *(w.label, w.role.value, _shape(w.shape), w.dtype, _readers(w)),
                    *(w.channel_axis, w.n_values),
                    *(gammas[w.name].values() if known is not None else ()),
                    _notes(w),
                ]
                for w in weights
            ],
            left=5,
        )
    if source.survey.excluded:
        click.echo(f"\nnot weights: {len(source.survey.excluded)}")
        print_table(
            ["tensor", "shape", "reason"],
            [[e.name, _shape(e.shape), e.reason] for e in source.survey.excluded],
            left=3,
        )
    if source.skipped:
        click.echo(f"\nleft in place, not surveyed: {len(source.skipped)}")
        print_table(["tensor or node", "reason"], [[s.what, s.why] for s in source.skipped], left=2)
    for drawn in random_operators(source.lifted.proto):
        click.echo(f"warning: {drawn} draws random numbers: the model cannot be scored")
    if write_rollout is not None:
        click.echo(f"\nwritten: {write_rollout}" + "".join(f"\n{line}" for line in questions(found)))
        return
    click.echo("\ndrafted rollout.toml (check it against the meaning of the inputs and outputs):\n")
    click.echo(draft_text(found))


def _gammas(scores: Scores | None) -> dict[str, dict[str, float | None]]:
    """Return γ_task of every weight, of its reader's input rounded to 8 bits, and the drift of that rounding."""
    if scores is None:
        return {}
    inputs = {s.weight: s for s in scores.activations}
    found: dict[str, dict[str, float | None]] = {}
    for w in scores.weights:
        a = inputs.get(w.weight)
        drift = None if a is None else math.sqrt(a.energy / scores.n_values)
        found[w.weight] = dict(
            zip(_GAMMAS, (w.gamma_task, None if a is None else a.gamma_task, drift), strict=True)
        )
    return found


def _write_gates(source: Source, path: Path) -> None:
    """Write the model with its packed recurrent weights split.

    Raises
    ------
    InputError
        The file exists, or the model has nothing to split.
    """
    if path.exists():
        raise InputError("exists", where=str(path), todo="Remove it, or write to another file")
    labels = {w.name: w.label for w in source.survey.weights}
    result = SplitGates(labels).apply(source.lifted)
    for skip in result.skipped:
        say(f"note: {skip.what} stays whole: {skip.why}")
    if not result.changed:
        raise InputError(
            "no weight holds several gates", where=str(source.path), todo="Leave --split-gates out"
        )
    save_model(result.model, path)
    say(f"written: {path}, {len(result.changed)} weights split by gate")


def _kinds(source: Source) -> BytesByKind:
    return bytes_by_kind(source.lifted, frozenset(w.name for w in source.survey.weights))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _readers(weight: Weight) -> str:
    texts = [f"{'→'.join([*r.through, r.op_type])}[{r.input_index}]" for r in weight.readers]
    shown = list(dict.fromkeys(texts))
    return ", ".join(shown[:3]) + (f" … ({len(texts)})" if len(shown) > 3 else "") if shown else "none"


def _notes(weight: Weight) -> str:
    notes: list[str] = []
    if weight.label != weight.name:
        notes.append(f"stored as {weight.name}")
    if not weight.outputs:
        notes.append("reaches no output")
    if weight.copies:
        more = f" and {len(weight.copies) - _MOST_COPIES} more" if len(weight.copies) > _MOST_COPIES else ""
        notes.append(
            f"one weight with {', '.join(weight.copies[:_MOST_COPIES])}{more}: their values are equal"
        )
    if weight.origin.value != "initializer":
        notes.append(f"from a {weight.origin.value}")
    return "; ".join(notes)


def _document(source: Source, found: Draft, gammas: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    return {
        "model": str(source.path),
        "bytes": source.facts.n_bytes,
        "bytes_by_kind": _kinds(source).to_dict(),
        "inputs": [str(p) for p in source.signature.inputs],
        "outputs": [str(p) for p in source.signature.outputs],
        "weights": [
            {
                "name": w.name,
                "label": w.label,
                "shape": w.shape,
                "dtype": w.dtype,
                "origin": w.origin.value,
                "role": w.role.value,
                "channel_axis": w.channel_axis,
                "readers": [
                    {"op_type": r.op_type, "node": r.node, "input": r.input_index, "through": r.through}
                    for r in w.readers
                ],
                "outputs": w.outputs,
                "copies": w.copies,
                **dict(zip(_KEYS, gammas[w.name].values(), strict=True) if gammas else ()),
            }
            for w in source.survey.weights
        ],
        "excluded": [
            {"name": e.name, "shape": e.shape, "dtype": e.dtype, "reason": e.reason}
            for e in source.survey.excluded
        ],
        "skipped": [{"what": s.what, "why": s.why} for s in source.skipped],
        "random_operators": random_operators(source.lifted.proto),
        "rollout": draft_text(found),
        "questions": questions(found),
    }
