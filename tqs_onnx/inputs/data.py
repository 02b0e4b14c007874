"""Reads the data of a job: the rollout spec, the scoring contexts, and the evaluation and calibration contexts.

Each may be a file or a value: a rollout spec as a dictionary or a `RolloutSpec`, contexts as arrays by name or as
`Contexts`. Values are identified by their digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tqs_onnx.inputs.drafting import Draft, assumption, draft_text, drafted, questions
from tqs_onnx.inputs.scaling import with_numbers
from tqs_onnx.inputs.source import Source
from tqs_onnx.rollout.contexts.arrays import contexts_of
from tqs_onnx.rollout.contexts.context_set import Contexts, contexts_hash
from tqs_onnx.rollout.contexts.load import check_disjoint, load_contexts
from tqs_onnx.rollout.spec.check import check_spec, unjudged
from tqs_onnx.rollout.spec.spec import RolloutSpec, content_hash, load_spec, spec_of
from tqs_onnx.rollout.spec.wiring import wired
from tqs_passes.errors import InputError

Rollout = str | Path | Mapping[str, Any] | RolloutSpec
Arrays = str | Path | Mapping[str, NDArray[Any]] | Contexts
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True, eq=False)
class DataOptions:
    """The data that a model is rolled out on.

    Parameters
    ----------
    rollout : path, mapping, RolloutSpec or None
        How outputs re-enter as inputs: a rollout.toml, its content as a dictionary, or a spec; None: drafted, see
        `drafting`.
    contexts : path, mapping of str to NDArray, or Contexts
        Scoring contexts, first axis context; a table is cut into both splits.
    evaluation : path, mapping of str to NDArray, Contexts or None
        Evaluation contexts; None: the test rows of the table.
    steps : int or None
        Model calls per rollout; None: as in the spec.
    max_contexts, max_eval_contexts : int or None
        Maximum numbers of scoring and of evaluation contexts.
    calibration : path, mapping of str to NDArray, Contexts or None
        Contexts for data-aware rounding; for a table, its training rows; None: the scoring contexts.
    """

    rollout: Rollout | None
    contexts: Arrays
    evaluation: Arrays | None = None
    steps: int | None = None
    max_contexts: int | None = None
    max_eval_contexts: int | None = None
    calibration: Arrays | None = None

    @property
    def given(self) -> dict[str, Rollout | Arrays]:
        """All given data, by role."""
        roles: dict[str, Rollout | Arrays | None] = {
            "rollout": self.rollout,
            "contexts": self.contexts,
            "evaluation": self.evaluation,
            "calibration": self.calibration,
        }
        return {role: value for role, value in roles.items() if value is not None}

    @property
    def files(self) -> dict[str, Path]:
        """The given files, by role."""
        return {role: Path(v) for role, v in self.given.items() if isinstance(v, str | Path)}


@dataclass(frozen=True, slots=True)
class Data:
    """The rollout of a job and its sets of contexts.

    Parameters
    ----------
    spec : RolloutSpec
    scoring : Contexts
    judging : Contexts or None
        The evaluation contexts, disjoint from the others; None if none were given.
    calibration : Contexts or None
        None if the scoring contexts are used for calibration.
    options : DataOptions
        The options they were read from.
    digests : dict of str to str
        SHA-256 of data given as values, by role.
    notes : tuple of str
        Notes on the data for the user.
    drafted : str
        The rollout.toml that was drafted; empty if a rollout spec was given.
    """

    spec: RolloutSpec
    scoring: Contexts
    judging: Contexts | None
    calibration: Contexts | None
    options: DataOptions
    digests: dict[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    drafted: str = ""

    @property
    def files(self) -> dict[str, Path]:
        """The given files by role, for the manifest."""
        return self.options.files

    @property
    def evaluation(self) -> Contexts:
        """The evaluation contexts.

        Raises
        ------
        InputError
            None were given.
        """
        if self.judging is None:
            raise InputError(
                "holds one set of contexts, which cannot be used for both scoring and evaluation",
                where=self.scoring.source,
                todo="Give `eval_contexts`",
            )
        return self.judging


def read_spec(options: DataOptions, source: Source) -> RolloutSpec:
    """Return the rollout spec, completed and checked against the model; drafted if none is given."""
    return _rollout(options, source)[0]


def _rollout(options: DataOptions, source: Source) -> tuple[RolloutSpec, Draft | None]:
    """Return the rollout spec, complete and checked, and its draft; no draft if the spec was given."""
    given = options.rollout
    if given is None:
        found = drafted(source)
        spec = found.spec if options.steps is None else found.spec.with_steps(options.steps)
        return spec, found
    where = str(given) if isinstance(given, str | Path) else "rollout"
    if isinstance(given, RolloutSpec):
        spec = given
    else:
        spec = load_spec(Path(given)) if isinstance(given, str | Path) else spec_of(given, where=where)
    if options.steps is not None:
        spec = spec.with_steps(options.steps)
    folder = Path(given).parent if isinstance(given, str | Path) else Path()
    table = options.contexts if isinstance(options.contexts, str | Path) else None
    try:
        spec = with_numbers(spec, source, folder, None if table is None else Path(table))
        spec = wired(spec, source.signature)
        check_spec(spec, source.signature)
    except InputError as error:
        place = error.where.replace("rollout.toml", where, 1)
        raise InputError(error.what, where=place, todo=error.todo) from error
    return spec, None


def read_data(options: DataOptions, source: Source, *, scoring_only: bool = False) -> Data:
    """Read spec and contexts.

    Parameters
    ----------
    options : DataOptions
    source : Source
    scoring_only : bool
        Do not read the evaluation contexts.

    Raises
    ------
    InputError
        A file is invalid, the spec does not fit the model, or the evaluation contexts overlap with the scoring or
        calibration contexts.
    """
    spec, draft = _rollout(options, source)
    limit = options.max_contexts
    scoring = _read(options.contexts, spec, source, "validation", limit, "contexts")
    calibration = judging = None
    if options.calibration is not None:
        calibration = _read(options.calibration, spec, source, "train", limit, "calibration")
    drafting = () if draft is None else (assumption(draft), *questions(draft))
    notes = (*drafting, *unjudged(spec, source.signature), *scoring.notes)
    wanted = options.evaluation if options.evaluation is not None else options.contexts
    if not scoring_only and (options.evaluation is not None or scoring.rows is not None):
        judging = _read(wanted, spec, source, "test", options.max_eval_contexts, "evaluation")
        check_disjoint(scoring, judging)
        if calibration is not None:
            check_disjoint(calibration, judging, "calibration")
        notes = tuple(dict.fromkeys((*notes, *judging.notes)))
    sets = {"contexts": scoring, "evaluation": judging, "calibration": calibration}
    values = [role for role in options.given if role not in options.files]
    digests = {role: contexts_hash(c) for role, c in sets.items() if c is not None and role in values}
    if "rollout" in values or draft is not None:
        digests["rollout"] = content_hash(spec)
    text = "" if draft is None else draft_text(draft)
    return Data(spec, scoring, judging, calibration, options, digests, notes, text)


def _read(
    given: Arrays, spec: RolloutSpec, source: Source, split: Split, limit: int | None, role: str
) -> Contexts:
    if isinstance(given, str | Path):
        return load_contexts(Path(given), spec, source.signature, split=split, limit=limit)
    if isinstance(given, Contexts):
        return given if limit is None else given.take(range(min(limit, given.n_contexts)))
    stored = {name: np.asarray(array) for name, array in given.items()}
    return contexts_of(stored, spec, source.signature, role, limit=limit)
