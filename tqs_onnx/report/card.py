"""A model card for an emitted file, with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tqs_onnx.analysis.table import Cell
from tqs_onnx.report.page import cell_text
from tqs_onnx.report.run import Run
from tqs_onnx.report.words import percent_text, sentence_of, size_text, tiles_of
from tqs_onnx.verification.manifest import Manifest
from tqs_onnx.version import VERSION


def card_of(run: Run, manifest: Manifest, command: str | None) -> str:
    """Return the card of a verified run, in Markdown.

    Parameters
    ----------
    run : Run
    manifest : Manifest
        That of the run.
    command : str or None
        The command that makes it again.
    """
    v = manifest.verification
    emitted = next(iter(manifest.output))
    source = next(iter(manifest.inputs.get("model", {"the source": ""})))
    parts = [
        _front_matter(manifest),
        f"# {_plain(emitted)}",
        _plain(sentence_of(emitted, v)),
        _table(("", "", ""), [(t.label, t.value, t.note) for t in tiles_of(v)]),
        "## Errors by variable",
        _errors(manifest),
        "σ is the standard deviation of the variable that the scores froze. MAE and RMSE are in the unit of the "
        "variable; RMSE is the mean over time of the root mean square over contexts and space. Intervals are 95 % "
        "percentile bootstraps.",
    ]
    if manifest.gates:
        rows = [(g.title, g.value, "holds" if g.passed else "FAILED") for g in manifest.gates]
        parts += ["## Gates", _table(("gate", "measured", ""), rows)]
    parts += [
        "## How it was made",
        f"Weights of {_plain(source)} ({size_text(v.bytes_in)}) were stored in fewer bits with tqs-onnx {VERSION}; "
        f"the file was then rolled out in onnxruntime beside its source, over {v.n_contexts} "
        f"{'made ' if v.on_made_contexts else ''}contexts that took no part in the choice. "
        f"Profile {manifest.profile}, provider {_plain(manifest.provider)}.",
    ]
    if command:
        parts.append(f"```sh\n{command}\n```")
    hashes = [
        *((role, name, digest) for role, held in manifest.inputs.items() for name, digest in held.items()),
        *(("output", name, digest) for name, digest in manifest.output.items()),
    ]
    parts += ["## Files", _table(("role", "name", "SHA-256"), hashes)]
    parts += ["## Licence", _plain(manifest.licence or "The source model does not state one.")]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: Manifest) -> str:
    licence = manifest.licence or ""
    spdx = re.fullmatch(r"[A-Za-z0-9.+-]{2,40}", licence)
    lines = [
        "---",
        "library_name: onnx",
        "pipeline_tag: time-series-forecasting",
        f"license: {licence.lower() if spdx else 'other'}",
        *([] if spdx or not licence else [f"license_name: {json.dumps(' '.join(licence.split()))}"]),
        "tags:",
        *(f"- {tag}" for tag in ("onnx", "onnxruntime", "quantized", "mixed-precision", "tqs-onnx")),
        "---",
    ]
    return "\n".join(lines)


def _errors(manifest: Manifest) -> str:
    v = manifest.verification
    rows: list[tuple[Cell, ...]] = []
    for name, e in v.errors.items():
        interval = None
        if e.degradation_low is not None and e.degradation_high is not None:
            interval = f"{percent_text(e.degradation_low)} to {percent_text(e.degradation_high)}"
        pair = (e.fp32.mae, e.file.mae, e.fp32.rmse, e.file.rmse) if e.fp32 and e.file else (None,) * 4
        rows.append((name, e.unit, v.drift.per_variable[name], *pair, e.degradation, interval))
    head = ("variable", "unit", "drift (σ)", "MAE FP32", "MAE", "RMSE FP32", "RMSE", "degradation %", "95 %")
    return _table(head, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_plain(cell_text(value)) for value in row)} |" for row in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))
