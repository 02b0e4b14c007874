"""Checks a verified file against its gates and writes its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqs_onnx.inputs.data import Data
from tqs_onnx.rollout.options import Provider
from tqs_onnx.verification.gates import Gate, Measured, gate_value, needs_truth, passes, value_text
from tqs_onnx.verification.manifest import GateResult, Manifest, versions
from tqs_onnx.verification.subject import Subject
from tqs_onnx.verification.timing import Timing
from tqs_onnx.verification.verdict import verdict
from tqs_onnx.verification.verify import Verification
from tqs_passes.errors import InputError
from tqs_passes.files.model import file_facts, sha256_of_file


def require_evaluable(gates: tuple[Gate, ...], data: Data) -> None:
    """Refuse gates that need missing data, before anything is computed.

    Raises
    ------
    InputError
        A gate needs the truth, but the evaluation contexts hold none.
    """
    for gate in gates:
        if needs_truth(gate) and not data.evaluation.truth:
            is_made = data.evaluation.is_made
            raise InputError(
                f"gate {gate.text!r} cannot be evaluated: "
                + ("made contexts have no truth" if is_made else "the evaluation contexts hold no truth"),
                where=data.evaluation.source,
                todo="Give `eval_contexts` with truth/<output>" if is_made else "Add truth/<output> to them",
            )


def judge(gates: tuple[Gate, ...], verification: Verification) -> tuple[GateResult, ...]:
    """Check gates against the measurements.

    Raises
    ------
    InputError
        A gate cannot be evaluated.
    """
    measured = Measured(verification.drift, verification.truth, verification.compression, verification.timing)
    values = [(gate, gate_value(gate, measured)) for gate in gates]
    return gate_results(values, on_made_contexts=verification.on_made_contexts)


def gate_results(values: Sequence[tuple[Gate, float]], *, on_made_contexts: bool) -> tuple[GateResult, ...]:
    """Return the results of gates with these values; those that limit drift name the contexts if they are made."""
    return tuple(
        GateResult(
            gate=g.text,
            value=v,
            passed=passes(g, v),
            on_made_contexts=on_made_contexts and g.metric == "drift",
        )
        for g, v in values
    )


def input_digests(
    model: Path, files: Mapping[str, Path], digests: Mapping[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of all inputs, by role and name.

    Parameters
    ----------
    model : Path
        The model; its external data are included.
    files : mapping of str to Path
        Files and folders, by role.
    digests : mapping of str to dict of str to str
        Digests of inputs that no file holds, by role and by what they are.
    """
    inputs = {"model": file_facts(model).sha256}
    inputs |= dict(digests)
    inputs |= {role: {path.name: sha256_of_file(path)} for role, path in files.items() if path.is_file()}
    inputs |= {
        role: {p.name: sha256_of_file(p) for p in sorted(path.rglob("*")) if p.is_file()}
        for role, path in files.items()
        if path.is_dir()
    }
    return inputs


def manifest_of(
    subject: Subject,
    files: dict[str, Path],
    digests: Mapping[str, dict[str, str]],
    verification: Verification,
    gates: tuple[GateResult, ...],
    licence: str | None,
    settings: dict[str, Any],
    provider: Provider,
) -> Manifest:
    """Return the manifest of an emitted file; `digests` are those of `Data`."""
    inputs = input_digests(subject.source, files, digests)
    return Manifest(
        inputs=inputs,
        output=file_facts(subject.emitted).sha256,
        versions=versions(provider),
        settings=settings,
        provider=provider,
        profile=subject.plan.profile,
        licence=licence,
        plan_sha256=subject.plan.digest(),
        unseen={a.label: a.unseen for a in subject.plan.assignments if a.unseen},
        tried=subject.plan.tried,
        verification=verification,
        gates=gates,
    )


def summary_of(v: Verification, emitted: Path, plan_file: Path, manifest_file: Path) -> dict[str, Any]:
    """Return the part of a job's JSON summary that describes its file."""
    degradation: dict[str, float | None] = {"worst": None}
    if v.truth:
        degradation = {"worst": max(e.degradation for e in v.truth.values())}
        degradation |= {name: e.degradation for name, e in v.truth.items()}
    return {
        "out": str(emitted),
        "bytes_in": v.bytes_in,
        "bytes_out": v.bytes_out,
        "compression": v.compression,
        "drift_predicted": v.predicted_drift,
        "drift_predicted_interval": None if v.prediction is None else [v.prediction.low, v.prediction.high],
        "drift_measured": v.drift.total,
        "on_made_contexts": v.on_made_contexts,
        "degradation": degradation,
        "plan": str(plan_file),
        "manifest": str(manifest_file),
        **({} if v.timing is None else {"timing": v.timing.model_dump(mode="json")}),
    }


def timing_line(t: Timing) -> str:
    """Return one line of ratios to FP32: latency at every batch size, load time and memory."""
    parts = [f"{ratio:.2f} at batch {batch}" for batch, ratio in t.latency.items()]
    memory = "" if t.memory is None else f", memory {t.memory:.2f}"
    peak = "" if t.peak is None else f" (peak {t.peak:.2f})"
    return f"latency {', '.join(parts)}; load {t.load:.2f}{memory}{peak} of FP32's"


def outcome_facts(v: Verification, gates: tuple[GateResult, ...], emitted: Path) -> dict[str, str]:
    """Return the part of a job's printed summary that describes its file, by label."""
    facts = {
        "verdict": verdict(v),
        "bytes": f"{v.bytes_in:,} → {v.bytes_out:,}",
        "drift": f"{v.drift.total:.4g} σ over {v.n_contexts} {'made ' if v.on_made_contexts else ''}contexts",
    }
    if v.predicted_drift is not None:
        facts["predicted"] = f"{v.prediction or format(v.predicted_drift, '.4g')} σ"
    if v.timing is not None:
        facts["timing"] = timing_line(v.timing)
    for gate in gates:
        state = "holds" if gate.passed else "FAILED"
        facts[f"gate {gate.title}"] = f"{value_text(gate.gate, gate.value)} {state}"
    return facts | {"file": str(emitted)}
