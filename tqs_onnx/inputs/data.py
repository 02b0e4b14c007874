"""Read what a job rolls out: the spec, the scoring contexts, and the evaluation contexts beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.context_set import Contexts
from tqs_onnx.rollout.contexts.load import check_disjoint, load_contexts
from tqs_onnx.rollout.spec.check import check_spec, unjudged
from tqs_onnx.rollout.spec.spec import RolloutSpec, load_spec
from tqs_passes.errors import InputError


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Where the rollout spec and the contexts are.

    Parameters
    ----------
    rollout : Path
    contexts : Path
        Scoring contexts; a table is cut into both splits.
    evaluation : Path or None
        Evaluation contexts; None: the test rows of the table.
    steps : int or None
        Overrides the spec's.
    max_contexts, max_eval_contexts : int or None
    calibration : Path or None
        Contexts for data-aware rounding, of a table the training rows; None: the scoring contexts serve.
    """

    rollout: Path
    contexts: Path
    evaluation: Path | None = None
    steps: int | None = None
    max_contexts: int | None = None
    max_eval_contexts: int | None = None
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """The rollout of a job and its two sets of contexts.

    Parameters
    ----------
    spec : RolloutSpec
    scoring, evaluation : Contexts
        Disjoint.
    files : dict of str to Path
        Role to file, for the manifest.
    calibration : Contexts or None
        Disjoint from evaluation; None where the scoring contexts serve.
    notes : tuple of str
        What the user should know of them.
    """

    spec: RolloutSpec
    scoring: Contexts
    evaluation: Contexts
    files: dict[str, Path]
    calibration: Contexts | None = None
    notes: tuple[str, ...] = ()


def read_spec(files: DataFiles, source: Source) -> RolloutSpec:
    """Read the rollout spec and hold it against the model."""
    spec = load_spec(files.rollout)
    if files.steps is not None:
        spec = spec.with_steps(files.steps)
    try:
        check_spec(spec, source.signature)
    except InputError as error:
        where = error.where.replace("rollout.toml", str(files.rollout), 1)
        raise InputError(error.what, where=where, todo=error.todo) from error
    return spec


@dataclass(frozen=True, slots=True)
class ScoringData:
    """The rollout of a job and the contexts that it may learn from.

    Parameters
    ----------
    spec : RolloutSpec
    scoring : Contexts
    calibration : Contexts or None
        None where the scoring contexts serve.
    notes : tuple of str
        What the user should know of them.
    """

    spec: RolloutSpec
    scoring: Contexts
    calibration: Contexts | None = None
    notes: tuple[str, ...] = ()


def read_scoring(files: DataFiles, source: Source) -> ScoringData:
    """Read the spec, the scoring contexts and the calibration contexts; no evaluation contexts are read.

    Raises
    ------
    InputError
        A file is bad, or the spec does not fit the model.
    """
    spec = read_spec(files, source)
    scoring = load_contexts(
        files.contexts, spec, source.signature, split="validation", limit=files.max_contexts
    )
    calibration = None
    if files.calibration is not None:
        calibration = load_contexts(
            files.calibration, spec, source.signature, split="train", limit=files.max_contexts
        )
    return ScoringData(spec, scoring, calibration, (*unjudged(spec, source.signature), *scoring.notes))


def read_data(files: DataFiles, source: Source) -> Data:
    """Read spec and contexts.

    Raises
    ------
    InputError
        A file is bad, the spec does not fit the model, or scoring or calibration contexts overlap with evaluation.
    """
    found = read_scoring(files, source)
    if files.evaluation is None and found.scoring.rows is None:
        raise InputError(
            "holds one set of contexts, which cannot be used for both scoring and evaluation",
            where=str(files.contexts),
            todo="Give `eval_contexts`",
        )
    evaluation = load_contexts(
        files.evaluation or files.contexts,
        found.spec,
        source.signature,
        split="test",
        limit=files.max_eval_contexts,
    )
    check_disjoint(found.scoring, evaluation)
    if found.calibration is not None:
        check_disjoint(found.calibration, evaluation, "calibration")
    given = {
        "rollout": files.rollout,
        "contexts": files.contexts,
        "evaluation": files.evaluation,
        "calibration": files.calibration,
    }
    named = {role: path for role, path in given.items() if path is not None}
    notes = (*found.notes, *evaluation.notes)
    return Data(found.spec, found.scoring, evaluation, named, found.calibration, notes)
