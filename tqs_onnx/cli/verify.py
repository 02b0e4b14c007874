"""`tqs verify`: roll an emitted file out against its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tqs_onnx.allocate.request import require_contexts_of, require_scores_of
from tqs_onnx.cli.options import (
    FILE,
    data_files,
    data_options,
    evaluation_options,
    force_option,
    gate_options,
    gate_texts,
    json_option,
    run_options,
)
from tqs_onnx.cli.outcome import finish, show_verification
from tqs_onnx.cli.show import print_json, say
from tqs_onnx.inputs.data import read_data
from tqs_onnx.inputs.source import open_source
from tqs_onnx.jobs.release import judge, manifest_of, require_evaluable
from tqs_onnx.jobs.run_directory import refuse_overwriting, with_data
from tqs_onnx.rollout.crash_check import require_loadable
from tqs_onnx.rollout.session import resolve_provider
from tqs_onnx.rounding.codes_file import codes_beside, codes_path
from tqs_onnx.score.scores import read_scores
from tqs_onnx.verify.gates import parse_gate
from tqs_onnx.verify.manifest import licence_of
from tqs_onnx.verify.verify import Bench, Subject, verify
from tqs_passes.errors import InputError
from tqs_passes.files.atomic import write_text
from tqs_passes.plan.plan import read_plan


@click.command("verify")
@click.argument("emitted", type=FILE)
@click.option("--source", "source_file", type=FILE, required=True, help="The file it was made from.")
@click.option("--plan", "plan_file", type=FILE, required=True, help="The plan it was made by.")
@click.option(
    "--scores", "scores_file", type=FILE, required=True, help="scores.json: its σ per variable are reused."
)
@data_options
@evaluation_options
@gate_options
@run_options
@click.option("--manifest", type=FILE, help="Where to write manifest.json [default: beside the file].")
@force_option
@json_option
def command(
    emitted: Path,
    source_file: Path,
    plan_file: Path,
    scores_file: Path,
    manifest: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    r"""Roll EMITTED out as a stock server would run it, against its source, and hold it to gates (exit 3).

    \b
    Example:
      tqs verify run/model.tqs.onnx --source model.onnx --plan run/plan.json --scores run/scores.json \
        --rollout rollout.toml --contexts contexts.npz --eval-contexts eval.npz --max-drift 0.1
    """
    gates = tuple(parse_gate(text) for text in gate_texts(options))
    target = manifest or emitted.with_name("manifest.json")
    source = open_source(source_file)
    read = [*source.files, *with_data(emitted), plan_file, scores_file]
    refuse_overwriting(
        [target], [*read, *(options[k] for k in ("rollout", "contexts", "eval_contexts") if options[k])]
    )
    if target.exists() and not force:
        raise InputError("exists", where=str(target), todo="Choose another --manifest, or give --force")
    for file in (source_file, emitted):
        require_loadable(file)
    plan = read_plan(plan_file)
    if plan.source_sha256 != source.sha256:
        raise InputError(
            "the plan is for another model", where=str(plan_file), todo="Give the plan of this file"
        )
    data = read_data(data_files(options), source)
    require_evaluable(gates, data)
    for note in data.notes:
        say(f"note: {note}")
    scores = read_scores(scores_file)
    require_scores_of(source, scores)
    require_contexts_of(scores, data.spec, data.scoring)
    bench = Bench(
        data.spec,
        data.evaluation,
        scores.sigma,
        resolve_provider(options["providers"]),
        options["batch"],
        options["threads"],
    )
    subject = Subject(source_file, emitted, source.lifted, source.survey, plan, codes_beside(plan_file, plan))
    verification = verify(subject, bench)
    results = judge(gates, verification)
    made = {"plan": plan_file, "scores": scores_file}
    if plan.codes_sha256 is not None:
        made["codes"] = codes_path(plan_file)
    document = manifest_of(
        subject,
        data.files | made,
        verification,
        results,
        licence_of(source.metadata),
        {
            "steps": data.spec.rollout.steps,
            "provider": bench.provider,
            "batch": bench.batch,
            "threads": bench.threads,
        },
    )
    write_text(target, document.to_json())
    if as_json:
        print_json(
            {"manifest": str(target), **verification.model_dump(), "gates": [r.model_dump() for r in results]}
        )
    else:
        show_verification(verification)
    return finish(results)
